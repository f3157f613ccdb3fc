"""NBD, the network block device protocol: a server and what clients and it share.

Source: github.com/NetworkBlockDevice/nbd, doc/proto.md. The client is `transports/nbd.py`.
"""

"""9P2000.L: a host directory as a file system of the guest.

`wire` parses and builds messages, `tree` touches the host, `server` is the protocol between them.
"""

"""What is on the other side of a bridge: a directory by HTTP, and a name by DNS.

`peer.py FOLDER ADDRESS` serves FOLDER at port 8000, and answers that every name has ADDRESS. It
prints `ready` once both are there, and runs until it is ended.
"""

from __future__ import annotations

import functools
import http.server
import socket
import struct
import sys
import threading

HTTP_PORT, DNS_PORT = 8000, 53
TYPE_A, CLASS_IN = 1, 1
RESPONSE, TTL_S = 0x8180, 60
NAME_OF_THE_QUESTION = 0xC00C


class Server(http.server.ThreadingHTTPServer):
    """HTTP over IPv6 and, by mapped addresses, IPv4."""

    address_family = socket.AF_INET6


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files; nothing is printed."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet."""


def answer(query: bytes, address: str) -> bytes:
    """A DNS answer (RFC 1035, section 4): one address for a question of type A, else none."""
    end = query.index(0, 12) + 5
    kind, _ = struct.unpack(">HH", query[end - 4 : end])
    found = kind == TYPE_A
    header = query[:2] + struct.pack(">HHHHH", RESPONSE, 1, found, 0, 0)
    record = struct.pack(">HHHIH", NAME_OF_THE_QUESTION, TYPE_A, CLASS_IN, TTL_S, 4)
    return header + query[12:end] + (record + socket.inet_aton(address) if found else b"")


def resolve(names: socket.socket, address: str) -> None:
    """Answer whoever asks."""
    while True:
        query, asker = names.recvfrom(512)
        names.sendto(answer(query, address), asker)


def main(folder: str, address: str) -> None:
    """See the module."""
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((address, DNS_PORT))
    threading.Thread(target=resolve, args=(names, address), daemon=True).start()
    server = Server(("::", HTTP_PORT), functools.partial(Handler, directory=folder))
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])

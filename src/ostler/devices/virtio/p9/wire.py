"""Messages of 9P2000.L: the fields of requests, parsed within bounds, and of replies.

Spec: the 9P2000.L protocol as the Linux client speaks it (Documentation/filesystems/9p), on 9P2000
(intro(5) of Plan 9). A message is size[4] type[1] tag[2] and its fields, little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

HEADER = struct.Struct("<IBH")
QID = struct.Struct("<BIQ")
NAME_MAX = 255
TARGET_MAX = 4095
WALK_MAX = 16


class T(IntEnum):
    """Request types; the reply to each is one more."""

    LERROR = 6
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


class Malformed(Exception):
    """A request whose fields are not there, or are longer than any may be."""


@dataclass(frozen=True, slots=True)
class Qid:
    """What identifies a file to the client."""

    kind: int
    version: int
    path: int

    def pack(self) -> bytes:
        """The 13 bytes of it."""
        return QID.pack(self.kind, self.version & 0xFFFF_FFFF, self.path & (1 << 64) - 1)


class Fields:
    """The fields of one request, taken from the front; `Malformed` when they end too soon."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def numbers(self, layout: str) -> tuple[int, ...]:
        """Unsigned numbers, as `struct` names them."""
        form = struct.Struct("<" + layout)
        return form.unpack(self.take(form.size))

    def number(self, layout: str) -> int:
        """One of them."""
        return self.numbers(layout)[0]

    def take(self, count: int) -> bytes:
        """So many bytes."""
        end = self._at + count
        if end > len(self._data):
            raise Malformed
        taken, self._at = self._data[self._at : end], end
        return taken

    def text(self, limit: int = TARGET_MAX) -> bytes:
        """A string of at most `limit` bytes, which no NUL is in."""
        text = self.take(self.number("H"))
        if len(text) > limit or b"\0" in text:
            raise Malformed
        return text

    def name(self) -> bytes:
        """What one entry of a directory can be called."""
        name = self.text(NAME_MAX)
        if not name or b"/" in name or name in (b".", b".."):
            raise Malformed
        return name


def text(value: bytes) -> bytes:
    """A string of a reply."""
    return struct.pack("<H", len(value)) + value


def reply(kind: int, tag: int, body: bytes) -> bytes:
    """A whole reply."""
    return HEADER.pack(HEADER.size + len(body), kind + 1, tag) + body

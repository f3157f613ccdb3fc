"""Extended attributes of shared files: those that users may give (xattr(7)), and no others.

Capabilities, access control lists and labels mean something on the host, so a guest neither sees
nor sets them.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from ostler.devices.virtio.p9.tree import Path9, Tree

PREFIX = b"user."
# Limits of Linux (linux/limits.h).
MAX_VALUE_BYTES = 65_536
XATTR_CREATE, XATTR_REPLACE = 1, 2


@dataclass(slots=True)
class Reading:
    """A value, or the list of names, that the client reads like a file."""

    value: bytes


@dataclass(slots=True)
class Writing:
    """A value that the client writes like a file; it is set when that is closed."""

    path: Path9
    name: bytes
    size: int
    flags: int
    value: bytearray = field(default_factory=bytearray)

    def write(self, offset: int, data: bytes) -> int:
        """Take what follows what is there already."""
        if offset != len(self.value) or offset + len(data) > self.size:
            raise OSError(errno.EINVAL, "not where the value goes on")
        self.value += data
        return len(data)

    def finish(self, tree: Tree) -> None:
        """Set the attribute, or remove it where the value is empty: nothing else tells the two."""
        if len(self.value) != self.size:
            raise OSError(errno.EINVAL, "not all of the value")
        with tree.by_name(self.path) as file:
            if self.size:
                os.setxattr(file, self.name, bytes(self.value), self.flags)
            else:
                os.removexattr(file, self.name)


def read(tree: Tree, path: Path9, name: bytes) -> Reading:
    """The value of an attribute; for the empty name, the names of all, each with a NUL."""
    with tree.by_name(path) as file:
        if name:
            _check(name)
            return Reading(os.getxattr(file, name))
        names = [os.fsencode(other) for other in os.listxattr(file)]
    return Reading(b"".join(other + b"\0" for other in names if other.startswith(PREFIX)))


def begin(tree: Tree, path: Path9, name: bytes, size: int, flags: int) -> Writing:
    """Have a value of `size` bytes be written; `flags` as of setxattr(2)."""
    tree.changing()
    _check(name)
    if size > MAX_VALUE_BYTES:
        raise OSError(errno.E2BIG, "no value is that long")
    if flags not in (0, XATTR_CREATE, XATTR_REPLACE):
        raise OSError(errno.EINVAL, "no such flags")
    return Writing(path, name, size, flags)


def _check(name: bytes) -> None:
    if not name.startswith(PREFIX):
        raise OSError(errno.EOPNOTSUPP, "not an attribute of users")

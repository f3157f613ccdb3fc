"""QEMU's locks on image files, so that neither program opens what the other writes.

As block/file-posix.c has them: byte 100 + p of the file is locked by those who use permission p,
byte 200 + p by those who deny it to others. The locks belong to the open file description (OFD).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct

from ostler.errors import DiskError

PERMISSION_BASE = 100
DENIED_BASE = 200
CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3

_FLOCK = struct.Struct("@hhqqi0q")
_TAKEN = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS_HERE = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)


def lock(name: str, fd: int, *, readonly: bool) -> None:
    """Lock the open file for reading, or for reading and writing; `DiskError` if it is in use."""
    used = (CONSISTENT_READ,) if readonly else (CONSISTENT_READ, WRITE)
    denied = (WRITE, RESIZE)
    try:
        # First take, then look: of two that open at once, at least one sees the other.
        for offset in [PERMISSION_BASE + p for p in used] + [DENIED_BASE + p for p in denied]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, offset, 1, 0))
        theirs = [DENIED_BASE + p for p in used] + [PERMISSION_BASE + p for p in denied]
        conflict = any(_is_locked(fd, offset) for offset in theirs)
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            # A file system without locks cannot tell; QEMU goes on, too.
            return
        if error.errno not in _TAKEN:
            raise DiskError(f"{name}: cannot lock disk image: {error.strerror}") from None
        # Somebody has locked these bytes as a whole, who follows no such protocol.
        conflict = True
    if conflict:
        raise DiskError(f"{name}: disk image is in use by another process; stop it or use a copy")


def unlock(fd: int) -> None:
    """Release all locks, though duplicates of the descriptor may stay open for a while."""
    span = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, PERMISSION_BASE, 200, 0)
    with contextlib.suppress(OSError):  # where there are no locks, there is nothing to release
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, span)


def _is_locked(fd: int, offset: int) -> bool:
    """Whether another open file holds a lock on the byte at `offset`."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    answer: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK

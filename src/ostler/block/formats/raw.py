"""Raw images: regular files and block devices whose bytes are the disk's.

Locks are QEMU's (block/file-posix.c), so that neither opens what the other writes: byte 100 + p of
the file is locked by those who use permission p, byte 200 + p by those who deny it to others.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from ostler.block.image import SECTOR_BYTES
from ostler.errors import DiskError

PERMISSION_BASE = 100
DENIED_BASE = 200
CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3

_FLOCK = struct.Struct("@hhqqi0q")
_NO_LOCKS_HERE = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)
# _IO(0x12, 123): BLKPBSZGET
_BLKPBSZGET = 0x127B


class RawImage:
    """An open raw image. Raises `DiskError` when it cannot be one."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self.fd = _open(path, readonly)
        try:
            self.size_bytes, self.block_bytes = _geometry(path, self.fd)
            _lock(path, self.fd, readonly)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Release the file and its locks; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open(path: Path, readonly: bool) -> int:
    try:
        return os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DiskError(
            f"{path}: no such disk image; create one with: truncate -s 1G {path}"
        ) from None
    except IsADirectoryError:
        raise DiskError(f"{path}: is a directory; give a disk image file") from None
    except OSError as error:
        cure = "" if readonly else "; open it read-only or make it writable"
        raise DiskError(f"{path}: cannot open disk image: {error.strerror}{cure}") from None


def _geometry(path: Path, fd: int) -> tuple[int, int]:
    """Size and physical block of the disk in bytes."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        block = struct.unpack("I", fcntl.ioctl(fd, _BLKPBSZGET, bytes(4)))[0]
        size = os.lseek(fd, 0, os.SEEK_END)
    elif stat.S_ISREG(status.st_mode):
        block, size = 4096, status.st_size
    else:
        raise DiskError(f"{path}: neither a file nor a block device; give a disk image")
    if size == 0:
        raise DiskError(f"{path}: the disk image is empty; grow it with: truncate -s 1G {path}")
    if size % SECTOR_BYTES:
        whole = size + -size % SECTOR_BYTES
        raise DiskError(
            f"{path}: {size} bytes is not a multiple of {SECTOR_BYTES}; "
            f"grow it with: truncate -s {whole} {path}"
        )
    return size, block


def _lock(path: Path, fd: int, readonly: bool) -> None:
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
        raise DiskError(f"{path}: cannot lock disk image: {error.strerror}") from None
    if conflict:
        raise DiskError(f"{path}: disk image is in use by another process; stop it or use a copy")


def _is_locked(fd: int, offset: int) -> bool:
    """Whether another open file holds a lock on the byte at `offset`."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    answer: bytes = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK

"""The disk that Linux's scsi_debug makes of memory, as its host sees it."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

DRIVER = Path("/sys/bus/pseudo/drivers/scsi_debug")
SECTOR_BYTES = 512
# linux/blkpg.h
BLKPG = 0x1269
BLKPG_ADD_PARTITION = 1
BLKPG_DEL_PARTITION = 2

takes_scsi_debug = pytest.mark.skipif(
    os.geteuid() != 0 or not DRIVER.exists() or not Path("/sys/class/scsi_generic").exists(),
    reason="takes root, and the modules scsi_debug, sg and sd_mod",
)


class _Partition(ctypes.Structure):
    """`struct blkpg_partition`."""

    _fields_ = (
        ("start", ctypes.c_longlong),
        ("length", ctypes.c_longlong),
        ("number", ctypes.c_int),
        ("names", ctypes.c_char * 128),
    )


class _Request(ctypes.Structure):
    """`struct blkpg_ioctl_arg`."""

    _fields_ = (
        ("operation", ctypes.c_int),
        ("flags", ctypes.c_int),
        ("length", ctypes.c_int),
        ("data", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class DebugDevice:
    """Its two device files, and what it is."""

    generic: Path
    block: Path
    identity: str
    sectors: int
    options: Path = DRIVER / "opts"

    def read(self, sector: int, length: int) -> bytes:
        """What is there now, whatever the page cache says."""
        fd = os.open(self.block, os.O_RDONLY | os.O_DIRECT)
        with mmap.mmap(-1, length) as buffer:
            try:
                assert os.preadv(fd, [buffer], sector * SECTOR_BYTES) == length
            finally:
                os.close(fd)
            return buffer[:]

    def write(self, sector: int, data: bytes) -> None:
        """Put whole sectors there."""
        fd = os.open(self.block, os.O_WRONLY | os.O_DIRECT)
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            try:
                assert os.pwritev(fd, [buffer], sector * SECTOR_BYTES) == len(data)
            finally:
                os.close(fd)

    @contextmanager
    def partition(self, *, first: int, sectors: int) -> Iterator[Path]:
        """The device file of a partition, which the kernel alone knows of."""
        place = _Partition(first * SECTOR_BYTES, sectors * SECTOR_BYTES, 1)
        fd = os.open(self.block, os.O_RDONLY)
        try:
            self._ask(fd, BLKPG_ADD_PARTITION, place)
            try:
                yield Path(f"{self.block}1")
            finally:
                self._ask(fd, BLKPG_DEL_PARTITION, place)
        finally:
            os.close(fd)

    @staticmethod
    def _ask(fd: int, operation: int, place: _Partition) -> None:
        size = ctypes.sizeof(place)
        fcntl.ioctl(fd, BLKPG, _Request(operation, 0, size, ctypes.addressof(place)))

    def digest(self, sector: int, length: int) -> str:
        """SHA-256 of what is there."""
        return hashlib.sha256(self.read(sector, length)).hexdigest()


def debug_device() -> DebugDevice:
    """The first of them."""
    for entry in sorted(Path("/sys/class/scsi_generic").iterdir()):
        about = entry / "device"
        if (about / "model").read_text().strip() != "scsi_debug":
            continue
        (block,) = (about / "block").iterdir()
        identity = " ".join(
            (about / name).read_text().strip() for name in ("vendor", "model", "rev")
        )
        sectors = int((block / "size").read_text())
        return DebugDevice(Path("/dev", entry.name), Path("/dev", block.name), identity, sectors)
    raise AssertionError("scsi_debug is loaded, and has no device")

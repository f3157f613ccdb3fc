"""The disk that Linux's scsi_debug makes of memory, as its host sees it."""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

DRIVER = Path("/sys/bus/pseudo/drivers/scsi_debug")
SECTOR_BYTES = 512

takes_scsi_debug = pytest.mark.skipif(
    os.geteuid() != 0 or not DRIVER.exists() or not Path("/sys/class/scsi_generic").exists(),
    reason="takes root, and the modules scsi_debug, sg and sd_mod",
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

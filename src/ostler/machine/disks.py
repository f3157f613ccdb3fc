"""The disks of a configuration, opened and locked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ostler.block.chain import identity
from ostler.block.crypto.secret import read_secret
from ostler.block.image import SECTOR_BYTES, Opening, create_image, open_image, open_with
from ostler.block.live import LiveImage
from ostler.config import DiskConfig, MachineConfig
from ostler.engine.block import BlockDisk
from ostler.errors import DiskError

BLOCK_BYTES = 4096


@dataclass(frozen=True)
class GuestDisk:
    """An open image as a device takes it."""

    live: LiveImage
    disk: BlockDisk
    readonly: bool
    block_bytes: int
    """What the host writes without reading first."""

    @property
    def size_bytes(self) -> int:
        """Whole sectors; more when the disk has grown."""
        return self.disk.size_bytes // SECTOR_BYTES * SECTOR_BYTES


@contextmanager
def open_disks(config: MachineConfig) -> Iterator[list[GuestDisk]]:
    """The images in the order of the configuration; `DiskError` when one cannot be had.

    At the end they are written out and closed, and overlays are gone.
    """
    with ExitStack() as opened:
        disks = [_guest_disk(opened.enter_context(_open(disk))) for disk in config.disks]
        try:
            yield disks
        finally:
            # Each holds its file open, and whoever keeps the list would keep that.
            disks.clear()


def _guest_disk(live: LiveImage) -> GuestDisk:
    image = live.image
    disk = GuestDisk(live, live.disk, image.readonly, getattr(image, "block_bytes", BLOCK_BYTES))
    if disk.size_bytes == 0:
        raise DiskError(f"--disk {image.name}: the disk has no sectors; resize it")
    return disk


def _open(disk: DiskConfig) -> LiveImage:
    format = disk.format or None
    secret = read_secret(Path(disk.key_file)) if disk.key_file else None
    if disk.overlay:
        return _open_overlay(disk.path, format, secret)
    how = Opening(
        readonly=disk.readonly or disk.media == "cdrom",
        unsafe=disk.cache == "unsafe",
        direct=disk.is_direct,
        secret=secret,
    )
    return LiveImage(open_with(disk.path, format, how), how)


def _open_overlay(path: str, format: str | None, secret: bytes | None) -> LiveImage:
    """A new image over the one at `path`, which has no name and is gone when it is closed."""
    with open_image(path, format=format, readonly=True, secret=secret) as base:
        size, base_format = base.size_bytes, base.format
    descriptor, name = tempfile.mkstemp(prefix="ostler-overlay-", suffix=".qcow2")
    os.close(descriptor)
    try:
        create_image(name, size, backing_file=identity(path), backing_fmt=base_format)
        how = Opening(unsafe=True, secret=secret)
        return LiveImage(open_with(name, "qcow2", how), how)
    finally:
        Path(name).unlink()

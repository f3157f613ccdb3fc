"""The disks of a configuration, opened and locked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ostler.block.image import HostFile, open_image
from ostler.config import DiskConfig, MachineConfig
from ostler.errors import DiskError


@contextmanager
def open_disks(config: MachineConfig) -> Iterator[list[HostFile]]:
    """The images in the order of the configuration; `DiskError` when one cannot be had."""
    with ExitStack() as opened:
        yield [opened.enter_context(_open(disk)) for disk in config.disks]


def _open(disk: DiskConfig) -> HostFile:
    image = open_image(disk.path, format=disk.format, readonly=disk.readonly)
    if isinstance(image, HostFile):
        return image
    image.close()
    raise DiskError(f"--disk {disk.path}: a guest cannot run from it; convert it to raw first")

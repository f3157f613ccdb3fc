"""The disks of a configuration, opened and locked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ostler.block.image import HostFile, open_image
from ostler.config import MachineConfig


@contextmanager
def open_disks(config: MachineConfig) -> Iterator[list[HostFile]]:
    """The images in the order of the configuration; `DiskError` when one cannot be had."""
    with ExitStack() as opened:
        yield [
            opened.enter_context(open_image(disk.path, readonly=disk.readonly))
            for disk in config.disks
        ]

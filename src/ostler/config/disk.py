"""A disk of a guest: `PATH[,readonly=on][,serial=TEXT][,discard=off][,cache=writethrough]`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ostler.config.options import build, split_options
from ostler.errors import ConfigError

FORMATS = ("raw",)
CACHES = ("writeback", "writethrough")
SERIAL_BYTES = 20


class DiskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image and how the guest sees it.

    `discard`: what the guest gives up is given back to the host. `cache`: with `writeback` a write
    is safe once the guest has flushed, with `writethrough` once it is answered. `packed`: packed
    rings are offered to the driver.
    """

    path: Path
    readonly: bool = False
    serial: str = ""
    format: str = "raw"
    discard: bool = True
    cache: str = "writeback"
    packed: bool = True

    def __post_init__(self) -> None:
        for what, given, known in (("format", self.format, FORMATS), ("cache", self.cache, CACHES)):
            if given not in known:
                there_is = ", ".join(known)
                raise ConfigError(f"--disk {self.path}: no {what} {given!r}; there is: {there_is}")
        if not self.serial.isascii() or len(self.serial) > SERIAL_BYTES:
            raise ConfigError(
                f"--disk {self.path}: serial {self.serial!r} is not at most"
                f" {SERIAL_BYTES} ASCII characters; shorten it"
            )

    @classmethod
    def parse(cls, text: str) -> DiskConfig:
        """From what follows `--disk`."""
        path, values = split_options(text, "--disk")
        if not path:
            raise ConfigError(f"--disk {text!r}: give the path of an image, disk.img say")
        if "path" in values:
            raise ConfigError(f"--disk {path}: the path comes first and once; drop path=")
        return build(cls, {"path": path, **values}, f"--disk {path}")

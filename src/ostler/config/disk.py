"""A disk of a guest: `PATH[,readonly=on][,serial=S][,format=raw]`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ostler.config.options import build, split_options
from ostler.errors import ConfigError

FORMATS = ("raw",)
SERIAL_BYTES = 20


class DiskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image and how the guest sees it."""

    path: Path
    readonly: bool = False
    serial: str = ""
    format: str = "raw"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            known = ", ".join(FORMATS)
            raise ConfigError(f"--disk {self.path}: no format {self.format!r}; there is: {known}")
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
        return build(cls, {"path": path, **values}, f"--disk {path}")

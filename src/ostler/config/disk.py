"""A disk of a guest: `PATH[,readonly=on][,overlay=on][,format=NAME][,cache=writethrough]...`."""

from __future__ import annotations

import os

import msgspec

from ostler.config.options import build, split_options
from ostler.errors import ConfigError

CACHES = ("writeback", "writethrough", "unsafe")
SERIAL_BYTES = 20


class DiskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image and how the guest sees it.

    `path`: a file, or a URL. `format`: what it is, guessed from its content if empty. `overlay`:
    what the guest writes is kept apart and thrown away at the end. `discard`: what the guest gives
    up is given back to the host. `cache`: with `writeback` a write is safe once the guest has
    flushed, with `writethrough` once it is answered, with `unsafe` never. `packed`: packed rings
    are offered to the driver. `key_file`: where an encrypted image's passphrase is.
    """

    path: str
    readonly: bool = False
    serial: str = ""
    format: str = ""
    overlay: bool = False
    discard: bool = True
    cache: str = "writeback"
    packed: bool = True
    key_file: str = ""

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            there_is = ", ".join(CACHES)
            raise ConfigError(f"--disk {self.path}: no cache {self.cache!r}; there is: {there_is}")
        if self.overlay and self.readonly:
            raise ConfigError(f"--disk {self.path}: overlay=on is for writing; drop readonly=on")
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
        return build(cls, values, f"--disk {path}", path=path)

    @classmethod
    def of(cls, disk: str | os.PathLike[str]) -> DiskConfig:
        """From a text as `--disk` takes it, or a path, in which commas are nothing special."""
        return cls.parse(disk) if isinstance(disk, str) else cls(os.fspath(disk))

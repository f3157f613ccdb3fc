"""A disk of a guest: `PATH[,readonly=on][,overlay=on][,format=NAME][,cache=writethrough]...`."""

from __future__ import annotations

import os

import msgspec

from ostler.config.options import build, split_options
from ostler.config.size import parse_size
from ostler.errors import ConfigError

CACHES = ("writeback", "writethrough", "none", "directsync", "unsafe")
MAX_QUEUES = 64
SERIAL_BYTES = 20
BUSES = ("virtio", "scsi")
MEDIA = ("disk", "cdrom")
NEXT_TARGET = -1


class DiskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An image and how the guest sees it.

    `path`: a file, or a URL. `format`: what it is, guessed from its content if empty. `overlay`:
    what the guest writes is kept apart and thrown away at the end. `discard`: what the guest gives
    up is given back to the host. `cache`: with `writeback` a write is safe once the guest has
    flushed, with `writethrough` once it is answered, with `unsafe` never; `none` and `directsync`
    are the first two around the host's page cache (O_DIRECT). `packed`: packed rings
    are offered to the driver. `key_file`: where an encrypted image's passphrase is.

    `queues`: as many requests are served at once as there are. `bps`, `iops`: bytes and requests a
    second at most, together on all queues; 0 is no limit.

    `bus`: `virtio` is a device of its own; with `scsi` it is unit `lun` of `target` (the next free
    one if left out) at the machine's SCSI host. `media`: `cdrom` is a read-only disc there.
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
    bus: str = ""
    media: str = "disk"
    target: int = NEXT_TARGET
    lun: int = 0
    queues: int = 1
    bps: str = "0"
    iops: int = 0

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            there_is = ", ".join(CACHES)
            raise ConfigError(f"--disk {self.path}: no cache {self.cache!r}; there is: {there_is}")
        self._check_place()
        self._check_limits()
        if self.overlay and self.readonly:
            raise ConfigError(f"--disk {self.path}: overlay=on is for writing; drop readonly=on")
        if not self.serial.isascii() or len(self.serial) > SERIAL_BYTES:
            raise ConfigError(
                f"--disk {self.path}: serial {self.serial!r} is not at most"
                f" {SERIAL_BYTES} ASCII characters; shorten it"
            )

    def _check_place(self) -> None:
        what = f"--disk {self.path}"
        if self.media not in MEDIA:
            raise ConfigError(f"{what}: no media {self.media!r}; there is: {', '.join(MEDIA)}")
        if self.bus and self.bus not in BUSES:
            raise ConfigError(f"{what}: no bus {self.bus!r}; there is: {', '.join(BUSES)}")
        if self.media == "cdrom" and self.bus == "virtio":
            raise ConfigError(f"{what}: virtio has no CD-ROM; say bus=scsi")
        if not self.on_scsi and (self.target != NEXT_TARGET or self.lun):
            raise ConfigError(f"{what}: target and lun are for bus=scsi; add it")

    def _check_limits(self) -> None:
        what = f"--disk {self.path}"
        if not 1 <= self.queues <= MAX_QUEUES:
            raise ConfigError(f"{what}: queues={self.queues}: give 1 to {MAX_QUEUES}")
        bytes_per_second = parse_size(self.bps, f"{what}: bps")
        if self.iops < 0 or not 0 <= bytes_per_second < 1 << 63 or self.iops >= 1 << 63:
            raise ConfigError(f"{what}: bps and iops are 0, for no limit, or what is allowed")
        if self.on_scsi and (self.queues != 1 or bytes_per_second or self.iops):
            raise ConfigError(f"{what}: queues, bps and iops are for bus=virtio; leave them out")

    @property
    def writes_through(self) -> bool:
        """Whether a write is on stable storage when it is answered."""
        return self.cache in ("writethrough", "directsync")

    @property
    def is_direct(self) -> bool:
        """Whether the host's page cache is not used."""
        return self.cache in ("none", "directsync")

    @property
    def on_scsi(self) -> bool:
        """Whether it is a unit of the SCSI host."""
        return self.bus == "scsi" or self.media == "cdrom"

    @property
    def writes(self) -> bool:
        """Whether the image itself is written to."""
        return not (self.readonly or self.overlay or self.media == "cdrom")

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

"""What was measured since this host booted, kept in a file of the user's.

The file is nothing but a saving of time: one that is missing, damaged, of another boot or another
version of Ostler, or in a place that cannot be written is the same as none. It is replaced as a
whole, so that starts at the same moment see the one or the other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from ostler import __version__
from ostler.host.view import HostView

BOOT_ID = "/proc/sys/kernel/random/boot_id"
NAME = "speed.json"
MAX_BYTES = 4096
METHOD = 2  # to be counted up when what is measured changes


class Speeds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: million kernel-mode instructions a second by accelerator, where it was measured."""

    boot: str
    version: str
    method: int
    mips: dict[str, float]


def directory(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the file goes (XDG Base Directory Specification): gone at log-out, if possible."""
    for name, below in (("XDG_RUNTIME_DIR", ""), ("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        place = environment.get(name, "")
        if place.startswith("/") and os.access(place, os.W_OK):
            return Path(place, below, "ostler")
    return None


class SpeedCache:
    """Speeds by accelerator, valid for one boot of `host`, one `version` and way to measure."""

    def __init__(self, host: HostView, place: Path | None, version: str = __version__) -> None:
        self._version = version
        self._boot = host.text(BOOT_ID) or ""
        self._path = None if place is None else place / NAME

    def read(self) -> dict[str, float]:
        """What is known; nothing where the file is not of this boot and version."""
        if self._path is None or not self._boot:
            return {}
        try:
            with open(self._path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                return {}
            speeds = msgspec.json.decode(data, type=Speeds)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        if (speeds.boot, speeds.version, speeds.method) != (self._boot, self._version, METHOD):
            return {}
        return {name: mips for name, mips in speeds.mips.items() if mips > 0}

    def write(self, mips: dict[str, float]) -> None:
        """Replace what is known."""
        if self._path is None or not self._boot:
            return
        data = msgspec.json.encode(Speeds(self._boot, self._version, METHOD, mips))
        new = self._path.with_name(f"{NAME}.{threading.get_native_id()}")
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
            try:
                new.write_bytes(data)
                new.replace(self._path)
            finally:
                new.unlink(missing_ok=True)

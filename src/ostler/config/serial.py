"""Where the guest's first serial port leads: `stdio`, `none` or `file:PATH`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import msgspec

from ostler.errors import ConfigError


class SerialKind(Enum):
    """The other end of the cable."""

    STDIO = "stdio"
    NONE = "none"
    FILE = "file"


class SerialConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The other end, and the file it is where it is one."""

    kind: SerialKind = SerialKind.STDIO
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> SerialConfig:
        """From what follows `--serial`."""
        kind, colon, path = text.partition(":")
        if kind == SerialKind.FILE.value and path:
            return cls(SerialKind.FILE, Path(path))
        if colon or kind not in (SerialKind.STDIO.value, SerialKind.NONE.value):
            raise ConfigError(f"--serial {text!r}: give stdio, none or file:PATH")
        return cls(SerialKind(kind))

"""A named port of the guest's virtio console: `NAME[=unix:PATH]` or `NAME=file:PATH`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import msgspec

from ostler.errors import ConfigError

# Linux makes a name of it under /dev/virtio-ports and in sysfs.
MAX_NAME_BYTES = 64
# One more than the specification's `max_nr_ports` is used for is the port without a name.
MAX_PORTS = 30


class PortKind(Enum):
    """The other end of a port."""

    OBJECT = "object"
    UNIX = "unix"
    FILE = "file"


class PortConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port called `name`; without a path its other end is `vm.console[name]`."""

    name: str
    kind: PortKind = PortKind.OBJECT
    path: Path | None = None

    def __post_init__(self) -> None:
        name = self.name
        if not name or not name.isprintable() or "/" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise ConfigError(
                f"--console {name!r}: a port's name has 1 to {MAX_NAME_BYTES} printable characters"
                " and no '/'; org.qemu.guest_agent.0 say"
            )

    @classmethod
    def parse(cls, text: str) -> PortConfig:
        """From what follows `--console`."""
        name, equals, where = text.partition("=")
        if not equals:
            return cls(name)
        kind, _, path = where.partition(":")
        if kind not in (PortKind.UNIX.value, PortKind.FILE.value) or not path:
            raise ConfigError(f"--console {text!r}: write NAME, NAME=unix:PATH or NAME=file:PATH")
        return cls(name, PortKind(kind), Path(path))


def check_ports(ports: tuple[PortConfig, ...]) -> None:
    """Raise `ConfigError` unless one machine can have all of them."""
    names = [port.name for port in ports]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--console {name}: the name is given twice; give each port its own")
    if len(ports) > MAX_PORTS:
        raise ConfigError(f"--console: {len(ports)} ports are too many; give at most {MAX_PORTS}")

"""The processors of a guest."""

from __future__ import annotations

import msgspec

from ostler.errors import ConfigError

MAX_CPUS = 512


class CpuConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many processors, all alike."""

    count: int = 1

    @classmethod
    def parse(cls, text: str | int) -> CpuConfig:
        """From what follows `--cpus`."""
        try:
            return cls(int(text))
        except ValueError:
            raise ConfigError(f"--cpus {text!r}: give a number from 1 to {MAX_CPUS}") from None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_CPUS:
            raise ConfigError(f"--cpus {self.count}: a guest has 1 to {MAX_CPUS} CPUs")

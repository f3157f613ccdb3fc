"""The processors of a guest."""

from __future__ import annotations

from enum import Enum

import msgspec

from ostler.errors import ConfigError

MAX_CPUS = 512


class SoftJit(Enum):
    """Whether the software CPU translates hot code to the host's."""

    ON = "on"
    OFF = "off"
    EAGER = "eager"
    """Translate all code before it first runs: for tests."""

    @classmethod
    def parse(cls, text: str) -> SoftJit:
        """From what follows `--soft-jit`."""
        try:
            return cls(text)
        except ValueError:
            raise ConfigError(f"--soft-jit {text!r}: there is: on, off") from None


class CpuConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many processors, all alike, and how `soft` runs them."""

    count: int = 1
    soft_jit: SoftJit = SoftJit.ON

    @classmethod
    def parse(cls, text: str | int, soft_jit: SoftJit = SoftJit.ON) -> CpuConfig:
        """From what follows `--cpus`."""
        try:
            return cls(int(text), soft_jit)
        except ValueError:
            raise ConfigError(f"--cpus {text!r}: give a number from 1 to {MAX_CPUS}") from None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_CPUS:
            raise ConfigError(f"--cpus {self.count}: a guest has 1 to {MAX_CPUS} CPUs")

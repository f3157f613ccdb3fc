"""The processors of a guest."""

from __future__ import annotations

from difflib import get_close_matches
from enum import Enum

import msgspec

from ostler.config.cpu_features import feature, listed, needs, with_needs
from ostler.config.cpu_models import HOST, MODELS, SPECIAL
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


class CpuModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which processor the guest sees: a model, features it has besides, and features it has not.

    `name` is `host`, `max` or one of `ostler.config.cpu_models`. What an added feature needs comes
    with it; what needs one that is taken away goes with it.
    """

    name: str = HOST
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> CpuModelConfig:
        """From what follows `--cpu`: `NAME,+FEATURE,-FEATURE`, or `FEATURE=on` and `=off`."""
        name, *parts = text.split(",")
        context = f"--cpu {text!r}"
        plus, minus = list[str](), list[str]()
        for part in parts:
            wanted, spelled = _switch(part, context)
            (plus if wanted else minus).append(feature(spelled, context))
        return cls(_model(name, context), tuple(plus), tuple(minus))

    def __post_init__(self) -> None:
        context = f"--cpu {str(self)!r}"
        _model(self.name, context)
        for spelled in (*self.plus, *self.minus):
            feature(spelled, context)
        if both := set(self.plus) & set(self.minus):
            raise ConfigError(f"{context}: {listed(both)} is both added and taken away; choose")
        for name in self.plus:
            if lost := with_needs(needs(name)) & set(self.minus):
                raise ConfigError(
                    f"{context}: {name} needs {listed(lost)}, which is taken away; choose"
                )

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked for."""
        return self == CpuModelConfig()

    def __str__(self) -> str:
        signed = (*(f"+{name}" for name in self.plus), *(f"-{name}" for name in self.minus))
        return ",".join((self.name, *signed))


def _switch(part: str, context: str) -> tuple[bool, str]:
    """Whether a feature is wanted, and its name as it is spelled."""
    name, equals, value = part.partition("=")
    if equals and value in ("on", "off"):
        return value == "on", name
    if not equals and part[:1] in ("+", "-"):
        return part[0] == "+", part[1:]
    raise ConfigError(f"{context}: {part!r} is not +FEATURE, -FEATURE, FEATURE=on or FEATURE=off")


def _model(name: str, context: str) -> str:
    """The model's name as it is written here; case does not matter."""
    known = {model.lower(): model for model in (*SPECIAL, *MODELS)}
    if name.lower() not in known:
        close = get_close_matches(name.lower(), known, 1)
        hint = f"; is it {known[close[0]]}?" if close else ";"
        raise ConfigError(f"{context}: there is no CPU model {name!r}{hint} --cpu help lists them")
    return known[name.lower()]


class CpuConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many processors, all alike, which, and how `soft` runs them."""

    count: int = 1
    soft_jit: SoftJit = SoftJit.ON
    model: CpuModelConfig = CpuModelConfig()

    @classmethod
    def parse(cls, text: str | int, soft_jit: SoftJit = SoftJit.ON, model: str = HOST) -> CpuConfig:
        """From what follows `--cpus`, `--soft-jit` and `--cpu`."""
        try:
            count = int(text)
        except ValueError:
            raise ConfigError(f"--cpus {text!r}: give a number from 1 to {MAX_CPUS}") from None
        return cls(count, soft_jit, CpuModelConfig.parse(model))

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_CPUS:
            raise ConfigError(f"--cpus {self.count}: a guest has 1 to {MAX_CPUS} CPUs")

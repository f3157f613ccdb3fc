"""What may run a guest's instructions: `kvm`, `soft`, `auto`, or a list such as `kvm,soft`."""

from __future__ import annotations

import msgspec

from ostler.errors import ConfigError

AUTO = "auto"
ACCELERATORS = ("kvm", "soft")


class AcceleratorChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accelerators in the order in which they are wanted; none given: the best there is."""

    candidates: tuple[str, ...] = ()

    @property
    def is_auto(self) -> bool:
        """Whether the choice is ours."""
        return not self.candidates

    @classmethod
    def parse(cls, text: str) -> AcceleratorChoice:
        """From what follows `--accel`."""
        if text == AUTO:
            return cls()
        names = tuple(text.split(","))
        for name in names:
            if name not in ACCELERATORS:
                known = ", ".join((AUTO, *ACCELERATORS))
                raise ConfigError(
                    f"--accel {text!r}: there is: {known}, or a list such as kvm,soft"
                )
        if len(set(names)) < len(names):
            raise ConfigError(f"--accel {text!r} names one twice; give each once")
        return cls(names)

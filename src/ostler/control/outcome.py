"""How a virtual machine ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ostler.errors import GuestError

GUEST_FAILED = 3
ENGINE_FAILED = 4


class Ending(Enum):
    """The ways to end, in words."""

    POWER_OFF = "power-off"
    RESET = "reset"
    STOPPED = "stopped"
    DEBUG_EXIT = "debug exit"
    TRIPLE_FAULT = "triple fault"
    PANIC = "panic"
    FAILURE = "failure of the engine"


@dataclass(frozen=True, slots=True)
class Outcome:
    """An ending, one line about it, and for a debug exit its code."""

    ending: Ending
    detail: str = ""
    code: int = 0

    @property
    def exit_code(self) -> int:
        """For a process: 0 for an end that was asked for, non-zero for any other."""
        match self.ending:
            case Ending.DEBUG_EXIT:
                return self.code
            case Ending.TRIPLE_FAULT | Ending.PANIC:
                return GUEST_FAILED
            case Ending.FAILURE:
                return ENGINE_FAILED
        return 0

    @property
    def failed(self) -> bool:
        """Whether the guest or the engine ended in a way nobody asked for."""
        return self.ending in (Ending.TRIPLE_FAULT, Ending.PANIC, Ending.FAILURE)

    def check(self) -> Outcome:
        """This outcome; `GuestError` when it is a failure."""
        if self.failed:
            raise GuestError(str(self))
        return self

    def __str__(self) -> str:
        return f"{self.ending.value}: {self.detail}" if self.detail else self.ending.value

"""How a virtual machine ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ostler.engine import Exit, InternalError, Shutdown
from ostler.errors import GuestError, OstlerError

HOST_FAILED = 2
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
    DISK_LOST = "a disk that could not be written"
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
            case Ending.DISK_LOST:
                return HOST_FAILED
            case Ending.FAILURE:
                return ENGINE_FAILED
        return 0

    @property
    def failed(self) -> bool:
        """Whether it ended in a way nobody asked for, or left a disk that is not whole."""
        return self.exit_code != 0 and self.ending is not Ending.DEBUG_EXIT

    def with_disk_lost(self, error: OstlerError) -> Outcome:
        """The ending where `error` kept a disk from being written out at this one."""
        detail = f"{error}; what the guest had not flushed is lost (it ended by {self})"
        return Outcome(Ending.DISK_LOST, detail)

    def check(self) -> Outcome:
        """This outcome; `GuestError` when it is a failure."""
        if self.failed:
            raise GuestError(str(self))
        return self

    def __str__(self) -> str:
        return f"{self.ending.value}: {self.detail}" if self.detail else self.ending.value


def of_vcpu_exit(number: int, exit: Exit, panic: str | None) -> Outcome:
    """The ending where vCPU `number` cannot go on; `panic` is what Linux said of one."""
    if isinstance(exit, Shutdown) and panic is not None:
        return Outcome(Ending.PANIC, panic)
    if isinstance(exit, Shutdown):
        return Outcome(Ending.TRIPLE_FAULT, f"CPU {number} could not deliver an exception")
    if isinstance(exit, InternalError):
        return Outcome(Ending.FAILURE, f"CPU {number}: {exit.text}")
    return Outcome(Ending.FAILURE, f"CPU {number}: unexpected {exit!r}")

"""The contract of a device, and the small protocols through which it sees the machine.

A device answers reads and writes of its ranges and drives interrupt lines. Its guest-visible
state is `self.state` and nothing else; everything handed to its constructor (lines, clocks, files)
is a host resource that is rebuilt, never saved. A guest mistake is answered as the chip would
answer it; `read` and `write` never raise because of what a guest wrote.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Protocol, TypeVar

from ostler.state import State


class IrqLine(Protocol):
    """A level-triggered interrupt input of the interrupt controllers."""

    def set_level(self, level: bool) -> None:
        """Assert (true) or deassert the line."""


class GuestMemory(Protocol):
    """Guest physical memory; addresses and lengths in bytes."""

    def read(self, gpa: int, length: int) -> bytes:
        """The bytes at `gpa`; `IndexError` when no memory is there."""

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` at `gpa`; `IndexError` when no memory is there."""


class Clock(Protocol):
    """The VM's monotonic clock."""

    def now_ns(self) -> int:
        """Nanoseconds since the VM was created; stands still while it is paused."""


S = TypeVar("S", bound=State)


class Device(Generic[S]):
    """Base of every device. Subclasses name themselves and their `State`."""

    name: ClassVar[str]
    State: ClassVar[type[State]]
    state: S

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        abstract = cls.__dict__.get("abstract", False)
        if not abstract and not (hasattr(cls, "name") and hasattr(cls, "State")):
            raise TypeError(f"{cls.__name__}: a device has a `name` and a `State`")

    def read(self, offset: int, size: int) -> int:
        """Answer a guest load of `size` (1, 2, 4 or 8) bytes at `offset` into the range."""
        raise NotImplementedError

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a guest store of `size` (1, 2, 4 or 8) bytes at `offset` into the range."""
        raise NotImplementedError

    def reset(self) -> None:
        """Return to the state after power-up and drive the lines accordingly."""
        self.replace(self.State())

    def save(self) -> dict[str, Any]:
        """The whole guest-visible state as plain data; changes nothing."""
        return self.state.to_dict()

    def load(self, data: dict[str, Any]) -> None:
        """Replace the state by one that `save` wrote; on `StateError` nothing has changed."""
        self.replace(self.State.from_dict(data))

    def replace(self, state: Any) -> None:
        """Take `state` and bring lines and host resources in accord with it."""
        self.state = state

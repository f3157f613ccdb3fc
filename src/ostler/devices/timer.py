"""Deadlines on the VM's clock, as devices see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """One deadline at a time; setting it again replaces it."""

    def arm(self, deadline_ns: int) -> None:
        """Call back once when the VM's clock reaches `deadline_ns`, at once when it has."""

    def cancel(self) -> None:
        """Forget the deadline. A call back that is already on its way may still come."""


class TimerService(Protocol):
    """Makes timers. Call backs come from a thread of the service, one at a time."""

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A timer that is not armed."""


class WallClock(Protocol):
    """The host's idea of the time of day."""

    def utc_ns(self) -> int:
        """Nanoseconds since 1970-01-01 00:00 UTC."""

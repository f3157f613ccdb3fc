"""Time that passes when a test says so."""

from __future__ import annotations

from collections.abc import Callable

EPOCH_2026_NS = 1_767_225_600 * 1_000_000_000


class VirtualTimer:
    """A timer of a `VirtualClock`."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.deadline_ns: int | None = None

    def arm(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns

    def cancel(self) -> None:
        self.deadline_ns = None


class VirtualClock:
    """A `Clock`, `WallClock` and `TimerService` in one, standing still until `advance`."""

    def __init__(self, utc_ns: int = EPOCH_2026_NS) -> None:
        self._now_ns = 0
        self._utc_at_zero_ns = utc_ns
        self._timers: list[VirtualTimer] = []

    def now_ns(self) -> int:
        return self._now_ns

    def utc_ns(self) -> int:
        return self._utc_at_zero_ns + self._now_ns

    def timer(self, callback: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(callback)
        self._timers.append(timer)
        return timer

    def advance(self, ns: int) -> None:
        """Let `ns` nanoseconds pass, calling back each timer at its moment, in order."""
        end_ns = self._now_ns + ns
        while due := self._first_due(end_ns):
            deadline_ns, timer = due
            self._now_ns = max(self._now_ns, deadline_ns)
            timer.cancel()
            timer.callback()
        self._now_ns = end_ns

    def _first_due(self, until_ns: int) -> tuple[int, VirtualTimer] | None:
        armed = [(t.deadline_ns, t) for t in self._timers if t.deadline_ns is not None]
        first = min(armed, key=lambda due: due[0], default=None)
        return first if first and first[0] <= until_ns else None

"""Deadlines on the VM's clock, kept by one thread."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from ostler.control.threads import NamedThread
from ostler.devices.device import Clock

SECOND_NS = 1_000_000_000


class ThreadTimer:
    """A timer of a `TimerThread`. A later `arm` or `cancel` makes earlier deadlines void."""

    def __init__(self, thread: TimerThread, callback: Callable[[], None]) -> None:
        self._thread, self.callback = thread, callback
        self.ticket: int | None = None

    def arm(self, deadline_ns: int) -> None:
        self._thread.push(deadline_ns, self)

    def cancel(self) -> None:
        self.ticket = None


class TimerThread:
    """A `TimerService` on `clock`. Nothing rings while it is paused, nor after `close`.

    Lock order: a device's lock may be held when a timer is armed; none of ours is held when a
    device is called back.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._heap: list[tuple[int, int, ThreadTimer]] = []
        self._tickets = itertools.count(1)
        self._paused, self._closed = True, False
        self._thread = NamedThread(target=self._run, name="timers", daemon=True)

    def timer(self, callback: Callable[[], None]) -> ThreadTimer:
        return ThreadTimer(self, callback)

    def push(self, deadline_ns: int, timer: ThreadTimer) -> None:
        """Ring `timer` at `deadline_ns`, and only then."""
        with self._changed:
            timer.ticket = next(self._tickets)
            heapq.heappush(self._heap, (deadline_ns, timer.ticket, timer))
            if self._heap[0][2] is timer:
                self._changed.notify()

    def start(self) -> None:
        """Begin to ring."""
        self._paused = False
        self._thread.start()

    def pause(self) -> None:
        """Let nothing ring until `resume`."""
        with self._changed:
            self._paused = True
            self._changed.notify()

    def resume(self) -> None:
        """Ring again; what has come due meanwhile rings at once."""
        with self._changed:
            self._paused = False
            self._changed.notify()

    def close(self) -> None:
        """End the thread, unless it is the caller."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while timer := self._next():
            timer.callback()

    def _next(self) -> ThreadTimer | None:
        """Wait for the next timer that is due; none when it is time to end."""
        with self._changed:
            while not self._closed:
                self._drop_void()
                wait_s = self._wait_seconds()
                if wait_s is not None and wait_s <= 0:
                    timer = heapq.heappop(self._heap)[2]
                    timer.ticket = None
                    return timer
                self._changed.wait(wait_s)
            return None

    def _drop_void(self) -> None:
        while self._heap and self._heap[0][1] != self._heap[0][2].ticket:
            heapq.heappop(self._heap)

    def _wait_seconds(self) -> float | None:
        if self._paused or not self._heap:
            return None
        return (self._heap[0][0] - self._clock.now_ns()) / SECOND_NS

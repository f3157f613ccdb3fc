"""The thread that notices what becomes of back-ends: a process ended, a device vanished."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections.abc import Callable

Callback = Callable[[], None]


class MonitorThread:
    """Waits for descriptors and deadlines; started by the first of them, ended by `close`."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._watched: dict[int, Callback] = {}
        self._later: list[tuple[float, int, Callback]] = []
        self._numbers = itertools.count()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)
        self._lock = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None

    def watch(self, fd: int, events: int, callback: Callback) -> None:
        """Call back whenever `fd` has one of the `poll` events, until it is forgotten."""
        with self._lock:
            self._watched[fd] = callback
            self._poll.register(fd, events)
        self._start()

    def forget(self, fd: int) -> None:
        """Do not look at `fd` any more; before it is closed."""
        with self._lock:
            if self._watched.pop(fd, None) is not None:
                self._poll.unregister(fd)
        self._rouse()

    def after(self, seconds: float, callback: Callback) -> None:
        """Call back once."""
        with self._lock:
            due = time.monotonic() + seconds
            heapq.heappush(self._later, (due, next(self._numbers), callback))
        self._start()

    def close(self) -> None:
        """End the thread; nothing is called any more afterwards."""
        with self._lock:
            self._closing = True
        self._rouse()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            os.close(self._wake)
            self._wake = -1
            self._watched.clear()
            self._later.clear()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="net-monitor", daemon=True)
                self._thread.start()
        self._rouse()

    def _rouse(self) -> None:
        """Have the thread look at what has changed; nothing after `close`."""
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        while not self._closing:
            for fd, _ in self._poll.poll(self._patience_ms()):
                self._call(fd)
            while (callback := self._due()) is not None:
                callback()

    def _call(self, fd: int) -> None:
        if fd == self._wake:
            os.eventfd_read(fd)
            return
        with self._lock:
            callback = self._watched.get(fd)
        if callback is not None and not self._closing:
            callback()

    def _patience_ms(self) -> int | None:
        with self._lock:
            if not self._later:
                return None
            return max(0, round((self._later[0][0] - time.monotonic()) * 1000) + 1)

    def _due(self) -> Callback | None:
        with self._lock:
            if self._closing or not self._later or self._later[0][0] > time.monotonic():
                return None
            return heapq.heappop(self._later)[2]

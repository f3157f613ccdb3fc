"""Work that takes a while, on a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from ostler.engine.block import CopyProgress
from ostler.errors import ConfigError, OstlerError, WaitTimeout
from ostler.waiting import wait_in_slices

T = TypeVar("T")
THREADS = min(4, os.cpu_count() or 1)
"""Of the work on one image."""


_unfinished: set[Job[Any]] = set()


def cancel_all() -> None:
    """Have all jobs end, and wait until they have cleared away what they made."""
    for job in tuple(_unfinished):
        job.cancel()
        with suppress(OstlerError):
            job.wait()


def check_limit(limit_bytes_s: object) -> None:
    """Refuse a limit that is none, before anything is made; 0 is no limit."""
    if not (isinstance(limit_bytes_s, int) and 0 <= limit_bytes_s < 1 << 63):
        raise ConfigError(
            f"limit_bytes_s={limit_bytes_s!r}: give whole bytes a second, or 0 for no limit"
        )


class Job(Generic[T]):
    """Something that is being done: `job.wait()`, or `await job`, is its result or its error.

    `total_bytes` is how much there is to do, `done_bytes` how much of it is done; both may grow
    while it runs.
    """

    def __init__(
        self,
        name: str,
        total_bytes: int,
        work: Callable[[Job[T]], T],
        progress: CopyProgress | None = None,
    ) -> None:
        self.name, self.total_bytes = name, total_bytes
        self.progress = progress or CopyProgress()
        self._work = work
        self._finished = threading.Event()
        self._watchers: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name[:15], daemon=True)
        _unfinished.add(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work(self)
        except BaseException as error:
            self._error = error
        with self._lock:
            _unfinished.discard(self)
            self._finished.set()
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def __repr__(self) -> str:
        state = f"{self.done_bytes} of {self.total_bytes} bytes"
        if not self.running:
            state = "finished" if self._error is None else f"failed: {self._error}"
        return f"<Job {self.name}, {state}>"

    @property
    def done_bytes(self) -> int:
        """How much is done."""
        return min(self.progress.done, self.total_bytes)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._finished.is_set()

    def cancel(self) -> None:
        """Have it end early; what waits for it gets an error that says so."""
        self.progress.cancel()

    def wait(self, timeout_s: float | None = None) -> T:
        """The result, or the error, once it has ended."""
        if not wait_in_slices(self._finished.wait, timeout_s):
            raise WaitTimeout(
                f"{self.name}: not finished in {timeout_s} s; wait longer or cancel it"
            )
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # it has ended without an error

    def watch(self, report: Callable[[int, int], object], interval_s: float = 0.1) -> T:
        """`wait`, and call `report(done_bytes, total_bytes)` now and then, and at the end."""
        while not self._finished.wait(interval_s):
            report(self.done_bytes, self.total_bytes)
        report(self.done_bytes, self.total_bytes)
        return self.wait()

    def __await__(self) -> Generator[Any, None, T]:
        return self._await().__await__()

    async def _await(self) -> T:
        import asyncio

        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            if self.running:
                self._watchers.append(lambda: loop.call_soon_threadsafe(ended.set))
            else:
                ended.set()
        try:
            await ended.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self.wait()

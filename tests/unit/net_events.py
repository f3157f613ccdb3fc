"""What a back-end of a network card tells its machine, in tests."""

from __future__ import annotations

import threading

PATIENCE_S = 60


class Heard:
    """What a back-end told, to be waited for."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self._changes = threading.Semaphore(0)

    def report(self, text: str) -> None:
        self.reports.append(text)

    def changed(self) -> None:
        self._changes.release()

    def await_change(self) -> None:
        assert self._changes.acquire(timeout=PATIENCE_S)

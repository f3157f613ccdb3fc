"""Lines for the owner of a machine: what it runs on, and what goes wrong on the host's side."""

from __future__ import annotations

import threading
from collections.abc import Callable


def log(text: str) -> None:
    """Where lines go when the owner has not said: to the logger `ostler`, silent by default."""
    import logging  # here, as it takes time and `ostler run` has a place of its own

    logger = logging.getLogger("ostler")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.warning(text)


class Reports:
    """Keeps lines back until the machine runs.

    Where it cannot be built, the error that says so is what matters, and comes alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[str] = []
        self._sink: Callable[[str], None] | None = None

    def add(self, text: str) -> None:
        """Pass `text` on, now or when the machine runs; from any thread."""
        with self._lock:
            if self._sink is None:
                self._kept.append(text)
                return
        self._sink(text)

    def release(self, sink: Callable[[str], None]) -> None:
        """Hand `sink` what was kept, and all that comes."""
        with self._lock:
            kept, self._kept, self._sink = self._kept, [], sink
        for text in kept:
            sink(text)

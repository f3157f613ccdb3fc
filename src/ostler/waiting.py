"""Waits that a signal ends."""

from __future__ import annotations

import time
from collections.abc import Callable

SLICE_S = 1.0
"""How late a signal may be heard."""


def wait_in_slices(wait: Callable[[float], bool], timeout_s: float | None = None) -> bool:
    """`wait(seconds)` until it is true, or for `timeout_s`; a signal's handler runs meanwhile.

    Python runs handlers on the main thread between its instructions. A signal that comes as a wait
    begins, or is taken by another thread, does not end that wait: the handler would run after it.
    """
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = SLICE_S if end is None else end - time.monotonic()
        if wait(max(min(left, SLICE_S), 0)):
            return True
        if left <= 0:
            return False

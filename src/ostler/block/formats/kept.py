"""A bounded memory of what was read or unpacked last, for many threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The last `most` values that `make` gave."""

    def __init__(self, most: int, make: Callable[[int], T]) -> None:
        self._most, self._make = most, make
        self._values: OrderedDict[int, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: int) -> T:
        """The value of `key`; two threads that miss it at once both make it."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
                return value
        value = self._make(key)
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._most:
                self._values.popitem(last=False)
        return value

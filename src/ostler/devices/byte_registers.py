"""Devices on an eight-bit bus: a wider access is a series of byte accesses, lowest first."""

from __future__ import annotations

import threading
from typing import Any, ClassVar, TypeVar

from ostler.devices.device import Device
from ostler.state import State

S = TypeVar("S", bound=State)

OPEN_BUS = 0xFF


class ByteRegisters(Device[S]):
    """A device whose registers are bytes, touched by vCPUs, timers and host threads.

    Every entry takes `self.lock` (re-entrant), so a subclass sees one access at a time.
    """

    abstract: ClassVar[bool] = True

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def read_byte(self, offset: int) -> int:
        """Answer a load of the byte at `offset`."""
        raise NotImplementedError

    def write_byte(self, offset: int, value: int) -> None:
        """Take a store of the byte `value` at `offset`."""
        raise NotImplementedError

    def read(self, offset: int, size: int) -> int:
        with self.lock:
            if size == 1:
                return self.read_byte(offset)
            return sum(self.read_byte(offset + i) << (8 * i) for i in range(size))

    def write(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            for i in range(size):
                self.write_byte(offset + i, value >> (8 * i) & 0xFF)

    def save(self) -> dict[str, Any]:
        with self.lock:
            return super().save()

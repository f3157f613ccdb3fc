"""What the bus wants of a device: the two calls it makes."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

Space: TypeAlias = Literal["pio", "mmio"]
"""I/O ports, or guest physical addresses without memory."""


class BusDevice(Protocol):
    """Anything with `read` and `write`; called on vCPU threads, from several at once."""

    def read(self, offset: int, size: int, /) -> int:
        """The `size` (1, 2, 4 or 8) bytes at `offset` into the range, little-endian."""

    def write(self, offset: int, size: int, value: int, /) -> None:
        """Store `size` (1, 2, 4 or 8) bytes at `offset` into the range."""

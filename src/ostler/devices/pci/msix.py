"""MSI-X: the capability, the vector table and the pending bits (PCI 3.0, section 6.8.2).

Each vector drives a route of the engine. The route is told the message and whether it is masked;
an interrupt raised while masked stays pending there and is sent when the mask goes. Table and
pending bits accept the 4 and 8 byte accesses the specification allows; others read ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ostler.errors import StateError

MSIX_CAPABILITY = 0x11
VECTOR_BYTES = 16
MAX_VECTORS = 2048
CONTROL_ENABLE = 1 << 15
CONTROL_FUNCTION_MASK = 1 << 14
VECTOR_MASKED = 1 << 0


class MsiRoute(Protocol):
    """One message-signalled interrupt on its way to the local APICs."""

    masked: bool
    """While true, `signal` only sets `pending`; setting it false sends what is pending."""

    pending: bool
    """Whether an interrupt waits for the mask to go; setting it sends nothing."""

    def update(self, address: int, data: int) -> None:
        """Send `data` to `address` from now on."""

    def signal(self) -> None:
        """Raise the interrupt."""


@dataclass(slots=True)
class MsixVector:
    """One entry of the table."""

    address: int = 0
    data: int = 0
    masked: bool = True
    pending: bool = False

    def validate(self) -> None:
        """Raise `StateError` for what no entry can hold."""
        if not 0 <= self.address < 1 << 64 or not 0 <= self.data < 1 << 32:
            raise StateError("MSI-X vector: address or data out of range")


class Msix:
    """The MSI-X part of one function: `count` vectors in BAR `bar`."""

    def __init__(self, count: int, bar: int, table_offset: int, pba_offset: int) -> None:
        if not 0 < count <= MAX_VECTORS:
            raise ValueError(f"{count} MSI-X vectors: 1 to {MAX_VECTORS} are possible")
        self.count = count
        self.bar = bar
        self.table_offset = table_offset
        self.pba_offset = pba_offset
        self.routes: tuple[MsiRoute, ...] = ()
        self.vectors = self.power_up()
        self._control = 0
        self.table = MsixTable(self)
        self.pending = MsixPending(self)

    @property
    def capability(self) -> tuple[bytes, bytes]:
        """The body of the capability and its writable bits."""
        body = (self.count - 1).to_bytes(2, "little")
        body += (self.table_offset | self.bar).to_bytes(4, "little")
        body += (self.pba_offset | self.bar).to_bytes(4, "little")
        return body, (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_bytes(2, "little")

    @property
    def table_bytes(self) -> int:
        """Size of the table."""
        return self.count * VECTOR_BYTES

    @property
    def pba_bytes(self) -> int:
        """Size of the pending bit array."""
        return (self.count + 63) // 64 * 8

    @property
    def enabled(self) -> bool:
        """Whether the guest takes MSI-X instead of INTx."""
        return bool(self._control & CONTROL_ENABLE)

    def power_up(self) -> list[MsixVector]:
        """The table after power-up: everything masked."""
        return [MsixVector() for _ in range(self.count)]

    def connect(self, new_route: Callable[[], MsiRoute]) -> None:
        """Give every vector its route."""
        self.routes = tuple(new_route() for _ in range(self.count))
        self._drive_all()

    def use(self, vectors: list[MsixVector], control: int) -> None:
        """Take the table and the message control word of a device's state."""
        self.vectors = vectors
        self._control = control
        for vector, route in zip(vectors, self.routes, strict=False):
            route.pending = vector.pending
        self._drive_all()

    def set_control(self, control: int) -> None:
        """The guest wrote the message control word."""
        if control != self._control:
            self._control = control
            self._drive_all()

    def note_pending(self) -> None:
        """Copy the routes' pending bits into the table, for saving."""
        for vector, route in zip(self.vectors, self.routes, strict=False):
            vector.pending = route.pending

    def drive(self, index: int) -> None:
        """Tell a route what its entry says."""
        if index >= len(self.routes):
            return
        vector, route = self.vectors[index], self.routes[index]
        route.update(vector.address, vector.data)
        masked = vector.masked or not self.enabled or bool(self._control & CONTROL_FUNCTION_MASK)
        if route.masked != masked:
            route.masked = masked

    def _drive_all(self) -> None:
        for index in range(len(self.routes)):
            self.drive(index)


class MsixTable:
    """The table's window in the BAR."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        """An entry's words: address low and high, data, vector control."""
        index, field = divmod(offset, VECTOR_BYTES)
        if size not in (4, 8) or field % size or index >= self._msix.count:
            return (1 << 8 * size) - 1
        vector = self._msix.vectors[index]
        entry = vector.address | vector.data << 64 | (VECTOR_MASKED * vector.masked) << 96
        return entry >> 8 * field & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Change an entry and the route that follows it."""
        index, field = divmod(offset, VECTOR_BYTES)
        if size not in (4, 8) or field % size or index >= self._msix.count:
            return
        for part in range(size // 4):
            self._store(self._msix.vectors[index], field + 4 * part, value >> 32 * part)
        self._msix.drive(index)

    @staticmethod
    def _store(vector: MsixVector, field: int, word: int) -> None:
        word &= 0xFFFF_FFFF
        if field == 0:
            vector.address = vector.address & ~0xFFFF_FFFF | word & ~0x3
        elif field == 4:
            vector.address = vector.address & 0xFFFF_FFFF | word << 32
        elif field == 8:
            vector.data = word
        else:
            vector.masked = bool(word & VECTOR_MASKED)


class MsixPending:
    """The pending bit array's window in the BAR; read-only."""

    def __init__(self, msix: Msix) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        """Bit n of the array: vector n waits for its mask to go."""
        bits = sum(route.pending << index for index, route in enumerate(self._msix.routes))
        return bits >> 8 * offset & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignored."""

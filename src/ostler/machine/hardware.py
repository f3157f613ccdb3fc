"""What a board is built on: the engine's `VirtualMachine`, or paper where nothing is to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ostler.devices.device import Clock, GuestMemory, IrqLine
from ostler.devices.pci.device import Bus, ReadWrite, Space
from ostler.devices.pci.msix import MsiRoute


class Memory(GuestMemory, Protocol):
    """Guest memory that can be made."""

    def add_slot(self, slot: int, gpa: int, size: int) -> None:
        """Put `size` bytes of zeroed RAM at `gpa`."""

    def remove_slot(self, slot: int) -> None:
        """Take the RAM of `slot` away."""

    def discard(self, gpa: int, size: int) -> int:
        """Give the host the pages there back, which read as zeros; how many bytes."""


class Hardware(Protocol):
    """The accelerator's side of a machine: memory, a bus, interrupt inputs."""

    @property
    def memory(self) -> Memory: ...
    @property
    def bus(self) -> Bus: ...
    @property
    def clock(self) -> Clock: ...
    def create_irqchip(self) -> None:
        """PIC, IOAPIC, PIT and a local APIC for each CPU."""

    def coalesce(self, space: Space, base: int, size: int) -> bool:
        """Let writes there wait until the guest next needs somebody; whether they will."""

    def irq_line(self, gsi: int) -> IrqLine:
        """The input of the interrupt controllers for `gsi`."""

    def msi_route(self) -> MsiRoute:
        """A new message-signalled interrupt."""


@dataclass(frozen=True, slots=True)
class Range:
    """`size` ports or bytes from `base` on, and who answers there."""

    space: Space
    base: int
    size: int
    name: str

    def overlaps(self, other: Range) -> bool:
        """Whether an address lies in both."""
        return (
            self.space == other.space
            and self.base < other.base + other.size
            and other.base < self.base + self.size
        )


class RecordedBus:
    """A `Bus` that knows what is on it, so that all of it can be shown, and taken away.

    `reserved` are ranges that the accelerator answers itself.
    """

    def __init__(self, bus: Bus, reserved: Sequence[Range] = ()) -> None:
        self._bus = bus
        self._reserved = tuple(reserved)
        self._ranges: dict[tuple[Space, int], Range] = {}

    @property
    def ranges(self) -> list[Range]:
        """Everything that answers, by address."""
        everything = (*self._reserved, *self._ranges.values())
        return sorted(everything, key=lambda taken: (taken.space, taken.base))

    def add(self, space: Space, base: int, size: int, device: ReadWrite, name: str = "") -> None:
        self._claim(Range(space, base, size, name))
        self._bus.add(space, base, size, device, name)

    def add_eventfd(
        self, space: Space, base: int, size: int, fd: int, name: str = "doorbell"
    ) -> None:
        self._claim(Range(space, base, size, name))
        self._bus.add_eventfd(space, base, size, fd, name)

    def _claim(self, wanted: Range) -> None:
        for taken in (*self._reserved, *self._ranges.values()):
            if taken.overlaps(wanted):
                raise ValueError(f"{wanted.base:#x} belongs to {taken.name} already")
        self._ranges[wanted.space, wanted.base] = wanted

    def remove(self, space: Space, base: int) -> None:
        self._bus.remove(space, base)
        self._ranges.pop((space, base), None)

    def clear(self) -> None:
        """Take everything off the bus."""
        for space, base in list(self._ranges):
            self.remove(space, base)


class HotSlots:
    """Slots of memory that comes and goes; their numbers begin behind those of a board's RAM."""

    FIRST_SLOT = 16

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def map(self, chunk: int, gpa: int, size: int) -> None:
        """Put zeroed memory there; `HostError` when the host has none."""
        self._memory.add_slot(self.FIRST_SLOT + chunk, gpa, size)

    def unmap(self, chunk: int) -> None:
        """Take it away."""
        self._memory.remove_slot(self.FIRST_SLOT + chunk)

    def discard(self, gpa: int, size: int) -> None:
        """Give the host back what is there."""
        self._memory.discard(gpa, size)


class RecordedLines:
    """Hands out interrupt inputs and remembers for whom."""

    def __init__(self, irq_line: Callable[[int], IrqLine]) -> None:
        self._irq_line = irq_line
        self.users: dict[int, list[str]] = {}

    def take(self, gsi: int, user: str) -> IrqLine:
        """The input for `gsi`, wired to the device called `user`."""
        self.users.setdefault(gsi, []).append(user)
        return self._irq_line(gsi)

"""What a board is built on: the engine's `VirtualMachine`, or paper where nothing is to run."""

from __future__ import annotations

from collections.abc import Callable
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

    def irq_line(self, gsi: int) -> IrqLine:
        """The input of the interrupt controllers for `gsi`."""

    def msi_route(self) -> MsiRoute:
        """A new message-signalled interrupt."""


class RecordedBus:
    """A `Bus` that knows what is on it, so that all of it can be shown, and taken away."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.ranges: dict[tuple[Space, int], tuple[int, str]] = {}

    def add(self, space: Space, base: int, size: int, device: ReadWrite, name: str = "") -> None:
        self._bus.add(space, base, size, device, name)
        self.ranges[space, base] = (size, name)

    def add_eventfd(self, space: Space, base: int, size: int, fd: int) -> None:
        self._bus.add_eventfd(space, base, size, fd)
        self.ranges[space, base] = (size, "doorbell")

    def remove(self, space: Space, base: int) -> None:
        self._bus.remove(space, base)
        self.ranges.pop((space, base), None)

    def clear(self) -> None:
        """Take everything off the bus."""
        for space, base in list(self.ranges):
            self.remove(space, base)


class RecordedLines:
    """Hands out interrupt inputs and remembers for whom."""

    def __init__(self, irq_line: Callable[[int], IrqLine]) -> None:
        self._irq_line = irq_line
        self.users: dict[int, list[str]] = {}

    def take(self, gsi: int, user: str) -> IrqLine:
        """The input for `gsi`, wired to the device called `user`."""
        self.users.setdefault(gsi, []).append(user)
        return self._irq_line(gsi)

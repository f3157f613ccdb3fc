"""The PCI host bridge: bus 0, its slots, and the two ways to configuration space.

Configuration mechanism 1 is ports 0xCF8 and 0xCFC (PCI 3.0, section 3.2.2.3.2); ECAM is a megabyte
of memory with 4096 bytes per function (PCI Express 3.0, section 7.2.2). Every device is function
0 of its slot. INTA of slot n is global system interrupt 16 + n mod 4, shared by wired OR.

As firmware would, the bridge gives every BAR an address before the guest runs.

Not modelled: bridges and further buses, functions 1 to 7, error registers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ostler.devices.device import Device, IrqLine
from ostler.devices.pci.config_space import (
    COMMAND,
    COMMAND_IO,
    COMMAND_MEMORY,
    INTERRUPT_LINE,
    Bar,
    Identity,
)
from ostler.devices.pci.device import Bus, Connection, PciDevice, PciState, ReadWrite
from ostler.devices.pci.msix import MsiRoute
from ostler.errors import ConfigError, StateError
from ostler.state import State

CONFIG_ADDRESS_PORT = 0xCF8
CONFIG_DATA_PORT = 0xCFC
ADDRESS_ENABLE = 1 << 31
ADDRESS_WRITABLE = 0x80FF_FFFC
RESET_REGISTER_OFFSET = 1
ECAM_FUNCTION_BYTES = 4096
ECAM_BUS_BYTES = 1 << 20
SLOTS = 32
FIRST_INTX_GSI = 16
INTX_GSIS = 4


def intx_gsi(slot: int, pin: int = 1) -> int:
    """The global system interrupt that `pin` (1 = INTA) of `slot` reaches."""
    return FIRST_INTX_GSI + (slot + pin - 1) % INTX_GSIS


@dataclass(frozen=True, slots=True)
class Windows:
    """Where BARs go: base and size in bytes. What does not fit below 4 GiB goes above."""

    ecam_base: int = 0xE000_0000
    io_base: int = 0xC000
    io_bytes: int = 0x4000
    low_base: int = 0xC000_0000
    low_bytes: int = 0x2000_0000
    high_base: int = 64 << 30
    high_bytes: int = 64 << 30


class HostBridge(PciDevice[PciState]):
    """Function 00:00.0: a bridge to the processor that nothing needs to be configured on."""

    name = "pci-host-bridge"
    State = PciState

    def __init__(self) -> None:
        # Red Hat's generic PCI Express host bridge: no operating system has a quirk for it.
        super().__init__(Identity(0x1B36, 0x0008, 0x060000, 0, 0x1AF4, 0x1100))


@dataclass(slots=True)
class HostState(State):
    """The latch of configuration mechanism 1."""

    address: int = 0

    def validate(self) -> None:
        """Raise `StateError` for bits the latch does not have."""
        if self.address & ~ADDRESS_WRITABLE:
            raise StateError(f"pci-host: address {self.address:#x}")


class PciHost(Device[HostState]):
    """Bus 0. As a `Device`, its range is the 8 ports from 0xCF8 on.

    `irq_line(gsi)` gives the four inputs the slots share; `new_route()` an MSI route.
    `reset_register` answers byte accesses to port 0xCF9, which lies inside the address port.
    """

    name = "pci-host"
    State = HostState

    def __init__(
        self,
        bus: Bus,
        irq_line: Callable[[int], IrqLine],
        new_route: Callable[[], MsiRoute],
        windows: Windows | None = None,
        reset_register: ReadWrite | None = None,
    ) -> None:
        self.state = HostState()
        self.windows = windows or Windows()
        self.slots: dict[int, PciDevice[Any]] = {}
        self._bus = bus
        self._new_route = new_route
        self._reset_register = reset_register
        self._lock = threading.Lock()
        self._allocator = _Allocator(self.windows)
        self._lines = [_shared(irq_line(FIRST_INTX_GSI + n)) for n in range(INTX_GSIS)]
        bus.add("pio", CONFIG_ADDRESS_PORT, 8, self, self.name)
        bus.add("mmio", self.windows.ecam_base, ECAM_BUS_BYTES, Ecam(self), "pci-ecam")
        self.attach(HostBridge(), 0)

    def attach(self, device: PciDevice[Any], slot: int | None = None) -> int:
        """Put `device` into `slot`, the lowest free one unless told; returns the slot."""
        free = [number for number in range(SLOTS) if number not in self.slots]
        if slot is None and free:
            slot = free[0]
        if slot is None or slot not in free:
            raise ConfigError(f"PCI slot {slot}: taken or not 0 to 31; free: {free}")
        self.slots[slot] = device
        line = self._lines[intx_gsi(slot) - FIRST_INTX_GSI].input()
        device.connect(Connection(self._bus, line, self._new_route))
        self._configure(slot, device)
        return slot

    def reset(self) -> None:
        """Reset the bridge and every slot; BARs keep the addresses they were given."""
        super().reset()
        for device in self.slots.values():
            device.reset()

    def read(self, offset: int, size: int) -> int:
        """A load from 0xCF8 + offset."""
        if offset >= 4:
            address = self.state.address
            if not address & ADDRESS_ENABLE or address >> 16 & 0xFF:
                return (1 << 8 * size) - 1
            return self.config_read(address >> 8 & 0xFF, (address & 0xFC) + offset - 4, size)
        if size == 4:
            return self.state.address
        if offset == RESET_REGISTER_OFFSET and size == 1 and self._reset_register:
            return self._reset_register.read(0, 1)
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to 0xCF8 + offset."""
        if offset >= 4:
            address = self.state.address
            if address & ADDRESS_ENABLE and not address >> 16 & 0xFF:
                self.config_write(address >> 8 & 0xFF, (address & 0xFC) + offset - 4, size, value)
        elif offset == 0 and size == 4:
            self.state.address = value & ADDRESS_WRITABLE
        elif offset == RESET_REGISTER_OFFSET and size == 1 and self._reset_register:
            self._reset_register.write(0, 1, value)

    def config_read(self, function: int, offset: int, size: int) -> int:
        """A load from the configuration space of `function` (slot << 3); ones where none is."""
        device = self.slots.get(function >> 3)
        if device is None or function & 7:
            return (1 << 8 * size) - 1
        with self._lock:
            return device.read(offset, size)

    def config_write(self, function: int, offset: int, size: int, value: int) -> None:
        """A store to the configuration space of `function` (slot << 3)."""
        device = self.slots.get(function >> 3)
        if device is not None and not function & 7:
            with self._lock:
                device.write(offset, size, value)

    def _configure(self, slot: int, device: PciDevice[Any]) -> None:
        bars = device.layout.bars
        registers = [(bar.offset, bar.width, self._allocator.take(bar)) for bar in bars]
        if bars:
            registers.append((COMMAND, 2, COMMAND_IO | COMMAND_MEMORY))
        device.configure(*registers, (INTERRUPT_LINE, 1, intx_gsi(slot)))


class Ecam:
    """The memory-mapped way to the configuration space of bus 0."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def read(self, offset: int, size: int) -> int:
        """A load at slot << 15 | function << 12 | register."""
        return self._host.config_read(*divmod(offset, ECAM_FUNCTION_BYTES), size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store at slot << 15 | function << 12 | register."""
        self._host.config_write(*divmod(offset, ECAM_FUNCTION_BYTES), size, value)


@runtime_checkable
class SharableLine(Protocol):
    """A line that combines the levels of several devices itself, as the engine's do."""

    def input(self) -> IrqLine:
        """A wire to the line, which is active while any wire is."""


def _shared(line: IrqLine) -> SharableLine:
    return line if isinstance(line, SharableLine) else SharedLine(line)


class SharedLine:
    """One interrupt input that several slots pull: active while any of them does."""

    def __init__(self, line: IrqLine) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._active: set[int] = set()
        self._inputs = 0

    def input(self) -> IrqLine:
        """A new wire to the line."""
        self._inputs += 1
        return _SharedInput(self, self._inputs)

    def set_input(self, number: int, level: bool) -> None:
        """Drive one wire; the line follows when the OR of all changes."""
        with self._lock:
            before = bool(self._active)
            (self._active.add if level else self._active.discard)(number)
            if before != bool(self._active):
                self._line.set_level(not before)


class _SharedInput:
    def __init__(self, line: SharedLine, number: int) -> None:
        self._shared = line
        self._number = number

    def set_level(self, level: bool) -> None:
        self._shared.set_input(self._number, level)


class _Allocator:
    """Hands out addresses from the windows, naturally aligned, first come, first served."""

    def __init__(self, windows: Windows) -> None:
        self._io = (windows.io_base, windows.io_base + windows.io_bytes)
        self._low = (windows.low_base, windows.low_base + windows.low_bytes)
        self._high = (windows.high_base, windows.high_base + windows.high_bytes)

    def take(self, bar: Bar) -> int:
        """An address for `bar`; `ConfigError` when no window has room."""
        if bar.kind == "io":
            base, self._io = self._cut(self._io, bar.size)
        else:
            base, self._low = self._cut(self._low, bar.size)
            if base is None and bar.kind == "mem64":
                base, self._high = self._cut(self._high, bar.size)
        if base is None:
            raise ConfigError(f"no room for a PCI BAR of {bar.size} bytes; use fewer devices")
        return base

    @staticmethod
    def _cut(window: tuple[int, int], size: int) -> tuple[int | None, tuple[int, int]]:
        start, end = window
        base = (start + size - 1) & ~(size - 1)
        return (base, (base + size, end)) if base + size <= end else (None, window)

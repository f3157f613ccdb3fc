"""The base of every PCI device: configuration space, BAR windows, INTx and MSI-X.

A `PciDevice` is a `Device` whose range is its configuration space. What lies in its BARs is a list
of regions, each answered by an object or, for doorbells, by an eventfd. When the guest moves a BAR
or switches decoding, the regions move on the bus.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from ostler.devices.device import Device, IrqLine
from ostler.devices.pci.config_space import (
    COMMAND,
    COMMAND_INTX_DISABLE,
    CONFIG_BYTES,
    STATUS,
    STATUS_INTERRUPT,
    Bar,
    ConfigLayout,
    Identity,
    register,
    with_register,
)
from ostler.devices.pci.msix import MSIX_CAPABILITY, MsiRoute, Msix, MsixVector
from ostler.errors import ConfigError, StateError
from ostler.state import State

Space = Literal["pio", "mmio"]


class ReadWrite(Protocol):
    """Answers the accesses to one range; offsets and sizes in bytes."""

    def read(self, offset: int, size: int) -> int:
        """The value of a load of 1, 2, 4 or 8 bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a store of 1, 2, 4 or 8 bytes."""


class Bus(Protocol):
    """Where ranges are answered. Adding raises `ConfigError` when a range overlaps another."""

    def add(self, space: Space, base: int, size: int, device: ReadWrite, name: str = "") -> None:
        """Have `device` answer `size` bytes from `base`."""

    def add_eventfd(
        self, space: Space, base: int, size: int, fd: int, name: str = "doorbell"
    ) -> None:
        """Have any store to the range write 1 to the eventfd `fd`, without the interpreter."""

    def remove(self, space: Space, base: int) -> None:
        """Take away the range that was added at `base`."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a BAR, answered by `target`: an object, or the eventfd of a doorbell."""

    bar: int
    offset: int
    size: int
    target: ReadWrite | int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """What a slot of the host bridge gives a device."""

    bus: Bus
    intx: IrqLine
    new_route: Callable[[], MsiRoute]


@dataclass(slots=True)
class PciState(State):
    """What every PCI function remembers."""

    config: bytes = bytes(CONFIG_BYTES)
    vectors: list[MsixVector] = field(default_factory=list)
    intx_level: bool = False

    def validate(self) -> None:
        """Raise `StateError` for what no function can hold; the layout is checked by the device."""
        if len(self.config) != CONFIG_BYTES:
            raise StateError(f"configuration space of {len(self.config)} bytes")
        for vector in self.vectors:
            vector.validate()


P = TypeVar("P", bound=PciState)


class PciDevice(Device[P]):
    """Base of the PCI devices. Not on a bus until `PciHost.attach` has called `connect`."""

    abstract = True

    def __init__(
        self,
        identity: Identity,
        bars: tuple[Bar, ...] = (),
        regions: Sequence[Region] = (),
        msix: Msix | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self._intx_lock = threading.Lock()
        self.label = ""  # which of several alike it is, in the names of its ranges
        self.layout = ConfigLayout(identity, bars)
        self.regions = list(regions)
        self.msix = msix
        self._msix_offset = 0
        if msix is not None:
            self._msix_offset = self.layout.add_capability(MSIX_CAPABILITY, *msix.capability)
            self.regions += [
                Region(msix.bar, msix.table_offset, msix.table_bytes, msix.table, "msix-table"),
                Region(msix.bar, msix.pba_offset, msix.pba_bytes, msix.pending, "msix-pba"),
            ]
        self._connection: Connection | None = None
        self._firmware: tuple[tuple[int, int, int], ...] = ()
        self._mapped: dict[int, tuple[int, list[Region]]] = {}

    def connect(self, connection: Connection) -> None:
        """Put the device into a slot."""
        self._connection = connection
        if self.msix is not None:
            self.msix.connect(connection.new_route)
        self.replace(self.power_up())

    def configure(self, *registers: tuple[int, int, int]) -> None:
        """Store (offset, size, value) as firmware would: now and after every reset."""
        self._firmware = registers
        for offset, size, value in registers:
            self.write(offset, size, value)

    def power_up(self) -> P:
        """The state after power-up; subclasses extend it."""
        state = self.State()
        assert isinstance(state, PciState)
        state.config = self.layout.initial
        state.vectors = self.msix.power_up() if self.msix else []
        return state  # type: ignore[return-value]  # P is bound by the class's `State`

    def reset(self) -> None:
        """Return to the state after power-up, as firmware configures it."""
        with self.lock:
            self.replace(self.power_up())
            self.configure(*self._firmware)

    def replace(self, state: Any) -> None:
        """Take `state`; lines, routes and bus ranges follow."""
        self.check(state)
        self.state = state
        if self.msix is not None:
            self.msix.use(state.vectors, self._msix_control())
        self._follow_config()

    def check(self, state: P) -> None:
        """Raise `StateError` unless `state` can be this device's."""
        self.layout.check(state.config)
        if len(state.vectors) != (self.msix.count if self.msix else 0):
            raise StateError(f"{self.name}: {len(state.vectors)} MSI-X vectors saved")

    def save(self) -> dict[str, Any]:
        """The state as plain data, with the interrupts that wait for a mask."""
        with self.lock:
            if self.msix is not None:
                self.msix.note_pending()
            return super().save()

    def read(self, offset: int, size: int) -> int:
        """A load from configuration space; ones past its end."""
        if offset + size > CONFIG_BYTES:
            return (1 << 8 * size) - 1
        config = self.state.config
        if self.state.intx_level:
            status = register(config, STATUS, 2) | STATUS_INTERRUPT
            config = with_register(config, STATUS, 2, status)
        return register(config, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to configuration space."""
        with self.lock:
            self.state.config = self.layout.stored(self.state.config, offset, size, value)
            if self.msix is not None:
                self.msix.set_control(self._msix_control())
            self._follow_config()

    def set_intx(self, level: bool) -> None:
        """Drive the interrupt pin. May be called from any thread, without `lock`."""
        with self._intx_lock:
            self.state.intx_level = level
        self._drive_intx()

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """A load from a BAR as the bus would route it; ones where no region is."""
        region = self._region(bar, offset, size)
        if region is None:
            return (1 << 8 * size) - 1
        return (
            0
            if isinstance(region.target, int)
            else region.target.read(offset - region.offset, size)
        )

    def bar_write(self, bar: int, offset: int, size: int, value: int) -> None:
        """A store to a BAR as the bus would route it."""
        region = self._region(bar, offset, size)
        if region is not None:
            self.region_write(region, offset - region.offset, size, value)

    def region_write(self, region: Region, offset: int, size: int, value: int) -> None:
        """A store to a region; doorbells are the subclass's."""
        if not isinstance(region.target, int):
            region.target.write(offset, size, value)

    def _region(self, bar: int, offset: int, size: int) -> Region | None:
        for region in self.regions:
            if region.bar == bar and region.offset <= offset < region.offset + region.size:
                return region if offset + size <= region.offset + region.size else None
        return None

    def _msix_control(self) -> int:
        return register(self.state.config, self._msix_offset + 2, 2)

    def _follow_config(self) -> None:
        self._drive_intx()
        if self._connection is None:
            return
        wanted = {bar.index: bar.base(self.state.config) for bar in self.layout.bars}
        moved = [bar for bar in self.layout.bars if self._base(bar.index) != wanted[bar.index]]
        for bar in moved:
            self._unmap(self._connection.bus, bar)
        for bar in moved:
            base = wanted[bar.index]
            if base is not None:
                self._map(self._connection.bus, bar, base)

    def _base(self, bar: int) -> int | None:
        mapped = self._mapped.get(bar)
        return None if mapped is None else mapped[0]

    def _map(self, bus: Bus, bar: Bar, base: int) -> None:
        placed: list[Region] = []
        self._mapped[bar.index] = (base, placed)
        for region in self.regions:
            if region.bar == bar.index and self._place(bus, _space(bar), base, region):
                placed.append(region)

    def _place(self, bus: Bus, space: Space, base: int, region: Region) -> bool:
        name = f"{self.label or self.name}:{region.name}"
        try:
            if isinstance(region.target, int):
                bus.add_eventfd(space, base + region.offset, region.size, region.target, name)
            else:
                bus.add(space, base + region.offset, region.size, region.target, name)
        except ConfigError:
            # The guest put the BAR over somebody else; who came first keeps answering.
            return False
        return True

    def _unmap(self, bus: Bus, bar: Bar) -> None:
        base, placed = self._mapped.pop(bar.index, (0, []))
        for region in placed:
            bus.remove(_space(bar), base + region.offset)

    def _drive_intx(self) -> None:
        if self._connection is None:
            return
        with self._intx_lock:
            disabled = register(self.state.config, COMMAND, 2) & COMMAND_INTX_DISABLE
            self._connection.intx.set_level(self.state.intx_level and not disabled)


def _space(bar: Bar) -> Space:
    return "pio" if bar.kind == "io" else "mmio"

"""A board: devices wired to a bus and interrupt inputs, with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ostler.config import NetConfig
from ostler.devices.device import Device, IrqLine
from ostler.devices.pci.device import ReadWrite
from ostler.devices.requests import MachineRequests
from ostler.devices.serial import SerialHost
from ostler.devices.timer import TimerService, WallClock
from ostler.devices.virtio.console import Port
from ostler.devices.virtio.workers import Cable, Workers
from ostler.machine.disks import GuestDisk
from ostler.machine.hardware import Hardware, RecordedBus, RecordedLines
from ostler.machine.memory_map import IRQCHIP_RANGES


class NetCable(Protocol):
    """A network card's cable and what the card on it is like."""

    @property
    def config(self) -> NetConfig: ...
    @property
    def link(self) -> Cable: ...
    @property
    def mac(self) -> bytes: ...
    @property
    def mtu(self) -> int:
        """What the driver should use at most, 0 for what it likes."""

    def report(self, text: str) -> None:
        """Something the user should know; from any thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the host side hands a board: the outer ends of its devices.

    `images` are the open disks in the order of the configuration; `console_fds` are the input and
    the output end of the virtio console, `vsock` the listening unix socket of the virtio-vsock
    device and its path, `cables` those of the network cards, `ports` the console's named ones.
    """

    serial: SerialHost
    timers: TimerService
    wall: WallClock
    requests: MachineRequests
    workers: Workers
    images: Sequence[GuestDisk] = ()
    console_fds: tuple[int, int] | None = None
    vsock: tuple[int, str] | None = None
    cables: Sequence[NetCable] = ()
    ports: Sequence[Port] = ()


class Shifted:
    """A register of a device that lies apart from the others on the bus."""

    def __init__(self, device: Device[Any], offset: int) -> None:
        self._device, self._offset = device, offset

    def read(self, offset: int, size: int) -> int:
        return self._device.read(self._offset + offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._device.write(self._offset + offset, size, value)


class Board:
    """Devices by name on `hardware`. `machine.virt.build` makes one; `close` takes it apart."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.bus = RecordedBus(hardware.bus, IRQCHIP_RANGES)
        self.lines = RecordedLines(hardware.irq_line)
        self.devices: dict[str, Device[Any]] = {}
        self._slots = 0

    def add_ram(self, gpa: int, size: int) -> None:
        """Put `size` bytes of RAM at `gpa`."""
        self.hardware.memory.add_slot(self._slots, gpa, size)
        self._slots += 1

    def irq(self, gsi: int, user: str) -> IrqLine:
        """The interrupt input `gsi` for the device called `user`."""
        return self.lines.take(gsi, user)

    def add(self, name: str, device: Device[Any]) -> None:
        """Take `device`, by the name under which its state will be saved."""
        self.devices[name] = device

    def map_ports(self, port: int, count: int, answer: ReadWrite, name: str) -> None:
        """Have `answer` see accesses to `count` I/O ports from `port` on."""
        self.bus.add("pio", port, count, answer, name)

    def map_memory(self, gpa: int, size: int, answer: ReadWrite, name: str) -> None:
        """Have `answer` see accesses to `size` bytes of guest physical memory from `gpa` on."""
        self.bus.add("mmio", gpa, size, answer, name)

    def reset(self) -> None:
        """Bring every device to its state after power-up."""
        for device in self.devices.values():
            device.reset()

    def close(self) -> None:
        """Stop what works for the devices, empty the bus and give the memory back."""
        for device in self.devices.values():
            close = getattr(device, "close", None)
            if close is not None:
                close()
        self.bus.clear()
        for slot in range(self._slots):
            self.hardware.memory.remove_slot(slot)
        self._slots = 0

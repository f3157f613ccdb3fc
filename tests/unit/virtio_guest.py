"""A machine with one virtio device on the engine's bus, and its driver, written in Python."""

from __future__ import annotations

import struct
import threading
from typing import Any

from ostler.devices.pci.host import PciHost
from ostler.devices.virtio.device import F_EVENT_IDX, F_VERSION_1, VirtioDevice
from ostler.devices.virtio.transport import VirtioPci
from ostler.devices.virtio.workers import Workers
from ostler.engine import MsiRoute, VirtioWorkers, VirtualMachine
from ostler.testing.pci import FakeLine

NEXT, WRITE = 1, 2
TABLE, AVAIL, USED, DATA = 0x1000, 0x2000, 0x3000, 0x10000
HEADER, STATUS, PAYLOAD = DATA, DATA + 0x100, DATA + 0x1000
PATIENCE_S = 20


class EventLine(FakeLine):
    """A line that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.rose = threading.Event()

    def set_level(self, level: bool) -> None:
        super().set_level(level)
        if level:
            self.rose.set()


class Guest:
    """A machine with one virtio device and a driver of its queue 0."""

    def __init__(self) -> None:
        self.vm = VirtualMachine("soft")
        self.vm.memory.add_slot(0, 0, 1 << 20)
        self.workers: Workers = VirtioWorkers(self.vm.memory)
        self.line = EventLine()
        self.routes: list[MsiRoute] = []
        self.host = PciHost(self.vm.bus, lambda _: self.line, self.new_route)
        self.available = 0

    def new_route(self) -> MsiRoute:
        self.routes.append(self.vm.msi_route())
        return self.routes[-1]

    def plug(self, device: VirtioDevice[Any]) -> VirtioPci:
        self.transport = VirtioPci(device)
        slot = self.host.attach(self.transport)
        self.bar = self.vm.bus.read("mmio", 0xE000_0010 + (slot << 15), 4) & ~0xF
        return self.transport

    def set(self, offset: int, size: int, value: int) -> None:
        self.vm.bus.write("mmio", self.bar + offset, size, value)

    def get(self, offset: int, size: int) -> int:
        return self.vm.bus.read("mmio", self.bar + offset, size)

    def drive(self, features: int = F_VERSION_1 | F_EVENT_IDX, queue: int = 0) -> None:
        self.set(20, 1, 0)
        self.set(20, 1, 3)
        for select in (0, 1):
            self.set(8, 4, select)
            self.set(12, 4, features >> 32 * select & 0xFFFF_FFFF)
        self.set(20, 1, 3 | 8)
        self.set(22, 2, queue)
        self.set(24, 2, 16)
        self.set(26, 2, 1)
        for offset, address in ((32, TABLE), (40, AVAIL), (48, USED)):
            self.set(offset, 8, address)
        self.set(28, 2, 1)
        self.set(20, 1, 3 | 8 | 4)
        assert self.get(20, 1) == 3 | 8 | 4
        self.doorbell = 0x3000 + 4 * queue

    def offer(self, *pieces: tuple[int, int, int]) -> None:
        """Make a chain of (address, length, flags) available and ring."""
        for index, (address, length, flags) in enumerate(pieces):
            more = NEXT if index + 1 < len(pieces) else 0
            descriptor = struct.pack("<QIHH", address, length, flags | more, index + 1)
            self.vm.memory.write(TABLE + 16 * index, descriptor)
        self.available += 1
        self.line.rose.clear()
        self.vm.memory.write(AVAIL + 2, struct.pack("<H", self.available))
        # The interrupt is wanted for the buffer offered just now.
        self.vm.memory.write(AVAIL + 4 + 32, struct.pack("<H", self.available - 1))
        self.set(self.doorbell, 2, 0)

    def await_interrupt(self) -> tuple[int, int]:
        """Wait for INTx and acknowledge it: head and length of the last used buffer."""
        assert self.line.rose.wait(PATIENCE_S)
        assert self.get(0x1000, 1) == 1
        assert not self.line.level
        return self.last_used()

    def last_used(self) -> tuple[int, int]:
        (index,) = struct.unpack("<H", self.vm.memory.read(USED + 2, 2))
        at = USED + 4 + 8 * ((index - 1) % 16)
        head, length = struct.unpack("<II", self.vm.memory.read(at, 8))
        return head, length

    def request(self, kind: int, sector: int, *data: tuple[int, int, int]) -> int:
        """One block request: its status."""
        self.vm.memory.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
        self.vm.memory.write(STATUS, b"\xee")
        self.offer((HEADER, 16, 0), *data, (STATUS, 1, WRITE))
        self.await_interrupt()
        return self.vm.memory.read(STATUS, 1)[0]

"""PCI and virtio devices, held to the contract of every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ostler.devices.device import Device
from ostler.devices.pci.device import Connection, PciDevice
from ostler.devices.pci.host import HostBridge, PciHost
from ostler.devices.virtio.balloon import VirtioBalloon
from ostler.devices.virtio.blk import VirtioBlk
from ostler.devices.virtio.console import Port, VirtioConsole
from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.input import VirtioKeyboard, VirtioTablet
from ostler.devices.virtio.mem import VirtioMem
from ostler.devices.virtio.net import VirtioNet
from ostler.devices.virtio.rng import VirtioRng
from ostler.devices.virtio.scsi import VirtioScsi
from ostler.devices.virtio.transport import VirtioPci
from ostler.devices.virtio.vsock import VirtioVsock
from ostler.testing import FakeMachine, check_device
from ostler.testing.pci import FakeBus, FakeCable, FakeImage, FakeRoute, FakeWorkers

DEVICES: tuple[Callable[[], VirtioDevice[Any]], ...] = (
    lambda: VirtioBlk(FakeImage(), FakeWorkers(), serial="conformance"),
    lambda: VirtioBlk(FakeImage(readonly=True), FakeWorkers(), queues=4),
    lambda: VirtioRng(FakeWorkers()),
    lambda: VirtioBalloon(FakeWorkers(), 1 << 30),
    lambda: VirtioKeyboard(FakeWorkers()),
    lambda: VirtioTablet(FakeWorkers()),
    lambda: VirtioScsi(FakeWorkers()),
    lambda: VirtioVsock(FakeWorkers(), 3, -1, "vsock"),
)


class PaperHotMemory:
    """Memory nobody has."""

    def map(self, chunk: int, gpa: int, size: int) -> None:
        pass

    def unmap(self, chunk: int) -> None:
        pass

    def discard(self, gpa: int, size: int) -> None:
        pass


# Their state is changed by a queue, not by the configuration space.
CARDS: tuple[Callable[[], VirtioDevice[Any]], ...] = (
    lambda: VirtioConsole((0, 1), FakeWorkers()),
    lambda: VirtioMem(FakeWorkers(), PaperHotMemory(), 4 << 30, 1 << 30),
    lambda: VirtioConsole(None, FakeWorkers(), [Port("agent", 0, 1), Port("log", 0, 1)]),
    lambda: VirtioNet(FakeCable(), FakeWorkers(), bytes.fromhex("525400123456"), mtu=1400),
    lambda: VirtioNet(FakeCable(), FakeWorkers(), bytes(6), pairs=4, hash_report=True),
)


class Common(VirtioPci):
    """The transport by way of its common configuration registers."""

    name = "virtio-pci-common"

    def read(self, offset: int, size: int) -> int:
        return self.bar_read(0, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.bar_write(0, offset, size, value)


def in_a_slot(device: PciDevice[Any], machine: FakeMachine) -> PciDevice[Any]:
    device.connect(Connection(FakeBus(), machine.irq_line(16), FakeRoute))
    return device


@pytest.mark.parametrize("new", DEVICES)
def test_virtio_device_conforms(new: Callable[[], VirtioDevice[Any]]) -> None:
    check_device(lambda machine: new(), max(len(new().config()), 16))


@pytest.mark.parametrize("new", DEVICES + CARDS)
@pytest.mark.parametrize("transport", [VirtioPci, Common])
def test_virtio_transport_conforms(
    new: Callable[[], VirtioDevice[Any]], transport: type[VirtioPci]
) -> None:
    made: list[VirtioPci] = []

    def wire(machine: FakeMachine) -> Device[Any]:
        made.append(transport(new()))
        return in_a_slot(made[-1], machine)

    check_device(wire, 256 if transport is VirtioPci else 60)
    for device in made:
        device.close()


def test_pci_host_conforms() -> None:
    check_device(lambda machine: PciHost(FakeBus(), machine.irq_line, FakeRoute), 8)


def test_host_bridge_conforms() -> None:
    check_device(lambda machine: in_a_slot(HostBridge(), machine), 256)

"""Emulated network cards as PCI functions: the pin, state, and the contract of devices."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from virtio_guest import EventLine

from ostler.config import NetConfig
from ostler.devices.device import Device
from ostler.devices.nic.card import EmulatedNic
from ostler.devices.nic.e1000 import E1000
from ostler.devices.nic.rtl8139 import PlainRtl8139, Rtl8139
from ostler.devices.pci.device import Connection
from ostler.devices.pci.host import PciHost
from ostler.engine import NetLink, VirtioWorkers, VirtualMachine
from ostler.errors import ConfigError, StateError
from ostler.testing import FakeMachine, check_device
from ostler.testing.pci import FakeBus, FakeCable, FakeRoute, FakeWorkers

MAC = bytes.fromhex("525400123456")
KINDS = (E1000, Rtl8139, PlainRtl8139)
COMMAND, COMMAND_ALL, INTX_DISABLE = 0x04, 0x07, 1 << 10
ICS, IMS, ICR = 0xC8, 0xD0, 0xC0
PATIENCE_S = 20


@pytest.mark.parametrize("kind", KINDS)
def test_card_conforms(kind: type[EmulatedNic]) -> None:
    def wire(machine: FakeMachine) -> Device[Any]:
        card = kind(FakeCable(), FakeWorkers(), MAC)
        card.connect(Connection(FakeBus(), machine.irq_line(16), FakeRoute))
        return card

    check_device(wire, 256)


class Lab:
    """A card on the engine's bus, whose peer is a socket."""

    def __init__(self, kind: type[EmulatedNic]) -> None:
        self.vm = VirtualMachine("soft")
        self.vm.memory.add_slot(0, 0, 1 << 20)
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours:
            link = NetLink.datagram(ours.fileno())
        self.line = EventLine()
        self.host = PciHost(self.vm.bus, lambda _: self.line, self.vm.msi_route)
        self.card = kind(link, VirtioWorkers(self.vm.memory), MAC)
        self.host.attach(self.card)
        self.card.write(COMMAND, 2, COMMAND_ALL)
        self.base = self.card.read(0x10, 4) & ~0xF

    def set(self, register: int, value: int) -> None:
        self.vm.bus.write("mmio", self.base + register, 4, value)

    def get(self, register: int) -> int:
        return self.vm.bus.read("mmio", self.base + register, 4)

    def close(self) -> None:
        self.card.close()
        self.vm.close()
        self.peer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_chip_is_saved_and_loaded_with_the_card(kind: type[EmulatedNic]) -> None:
    one, two = Lab(kind), Lab(kind)
    bar = 1 if issubclass(kind, Rtl8139) else 0
    for register, value in ((0x44, 4), (0x100, 0x8002), (0x3C, 0x12)):
        one.card.bar_write(bar, register, 4, value)
    saved = one.card.save()
    two.card.load(saved)
    assert two.card.save()["chip"] == saved["chip"]
    with pytest.raises(StateError, match="registers"):
        two.card.load({**saved, "chip": {"registers": [1]}})
    assert two.card.save()["chip"] == saved["chip"]
    two.card.reset()
    assert two.card.save()["chip"] != saved["chip"]
    one.close()
    two.close()


def test_pin_follows_the_chip_and_can_be_disabled() -> None:
    lab = Lab(E1000)
    lab.set(IMS, 1)
    lab.set(ICS, 1)
    assert lab.line.level
    assert lab.card.read(0x06, 2) & 8
    lab.card.write(COMMAND, 2, COMMAND_ALL | INTX_DISABLE)
    assert not lab.line.level
    assert lab.card.read(0x06, 2) & 8
    lab.card.write(COMMAND, 2, COMMAND_ALL)
    assert lab.line.level
    assert lab.get(ICR) == 1
    assert not lab.line.level
    lab.close()


def test_card_that_may_not_access_memory_moves_nothing_until_it_may() -> None:
    lab = Lab(E1000)
    lab.card.write(COMMAND, 2, COMMAND_ALL & ~4)
    frame = MAC * 2 + bytes(50)
    lab.vm.memory.write(0x8000, frame)
    lab.vm.memory.write(
        0x1000, (0x8000).to_bytes(8, "little") + (len(frame) | 9 << 24).to_bytes(8, "little")
    )
    for register, value in ((0x3800, 0x1000), (0x3808, 128), (IMS, 1), (0x400, 2), (0x3818, 1)):
        lab.set(register, value)
    lab.peer.settimeout(PATIENCE_S)
    assert lab.get(0x3810) == 0
    lab.card.write(COMMAND, 2, COMMAND_ALL)
    assert lab.peer.recv(2048) == frame
    assert lab.line.rose.wait(PATIENCE_S)
    assert lab.card.counters()[1][:2] == (1, len(frame))
    lab.close()


def test_link_pulled_reaches_the_chip_and_announcing_is_refused() -> None:
    workers = FakeWorkers()
    card = E1000(FakeCable(), workers, MAC)
    card.set_link(False)
    assert not card.link_up
    card.set_link(True)
    assert card.link_up
    with pytest.raises(ConfigError, match="only virtio cards"):
        card.announce()


def test_config_of_an_emulated_card_has_one_queue() -> None:
    assert NetConfig.parse("user,model=e1000").model == "e1000"
    for options in ("queues=2", "hash=on"):
        with pytest.raises(ConfigError, match="model=rtl8139 has one queue"):
            NetConfig.parse(f"user,model=rtl8139,{options}")

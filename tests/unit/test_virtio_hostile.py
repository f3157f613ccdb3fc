"""Every virtio device with a driver that breaks the rules: none may crash, hang, or stay broken."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from virtio_guest import AVAIL, DATA, PATIENCE_S, TABLE, USED, WRITE, Guest

from ostler.config import DiskConfig, MachineConfig
from ostler.devices.virtio.balloon import VirtioBalloon
from ostler.devices.virtio.blk import VirtioBlk
from ostler.devices.virtio.console import Port, VirtioConsole
from ostler.devices.virtio.device import F_VERSION_1, VirtioDevice
from ostler.devices.virtio.input import VirtioKeyboard
from ostler.devices.virtio.mem import VirtioMem
from ostler.devices.virtio.net import VirtioNet
from ostler.devices.virtio.rng import VirtioRng
from ostler.devices.virtio.scsi import VirtioScsi
from ostler.devices.virtio.share import VirtioShare
from ostler.devices.virtio.state import ISR_CONFIG, NEEDS_RESET
from ostler.devices.virtio.vsock import VirtioVsock
from ostler.engine import NetLink
from ostler.machine.disks import GuestDisk, open_disks
from ostler.machine.hardware import HotSlots

NEXT = 1
STATUS, ISR = 20, 0x1000
RAM_BYTES = 1 << 20
NOWHERE = 1 << 40


class Lab:
    """A machine, and what its devices have of the host."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.guest, self.folder, self.stack = Guest(), folder, stack
        stack.callback(self.guest.vm.close)

    def disk(self) -> GuestDisk:
        path = self.folder / "disk.img"
        path.write_bytes(bytes(1 << 16))
        config = MachineConfig(kernel=path, disks=(DiskConfig(str(path)),))
        return self.stack.enter_context(open_disks(config))[0]

    def pipe(self) -> tuple[int, int]:
        """The read end of one pipe, and the write end of another."""
        ends = (*os.pipe(), *os.pipe())
        for fd in ends:
            self.stack.callback(os.close, fd)
        return ends[0], ends[3]

    def socket_fd(self, kind: socket.SocketKind) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.stack.enter_context(ours)
        return self.stack.enter_context(theirs).fileno()

    def listener_fd(self) -> int:
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(self.folder / "vsock"))
        listener.listen()
        return listener.fileno()


def scsi(lab: Lab) -> VirtioScsi:
    device = VirtioScsi(lab.guest.workers)
    device.attach(0, 0, lab.disk())
    return device


def console(lab: Lab) -> VirtioConsole:
    ports = [Port("agent", *lab.pipe())]
    return VirtioConsole(lab.pipe(), lab.guest.workers, ports)


def net(lab: Lab) -> VirtioNet:
    link = NetLink.datagram(lab.socket_fd(socket.SOCK_DGRAM))
    return VirtioNet(link, lab.guest.workers, bytes.fromhex("525400123456"))


DEVICES: dict[str, Callable[[Lab], VirtioDevice[Any]]] = {
    "blk": lambda lab: VirtioBlk(lab.disk(), lab.guest.workers),
    "scsi": scsi,
    "console": console,
    "rng": lambda lab: VirtioRng(lab.guest.workers, 1 << 30),
    "balloon": lambda lab: VirtioBalloon(lab.guest.workers, RAM_BYTES),
    "mem": lambda lab: VirtioMem(
        lab.guest.workers, HotSlots(lab.guest.vm.memory), 1 << 32, 1 << 28
    ),
    "keyboard": lambda lab: VirtioKeyboard(lab.guest.workers),
    "vsock": lambda lab: VirtioVsock(lab.guest.workers, 3, lab.listener_fd(), f"{lab.folder}/v"),
    "share": lambda lab: VirtioShare(lab.guest.workers, lab.folder, "tag"),
    "net": net,
}


def describe(guest: Guest, *descriptors: tuple[int, int, int, int]) -> None:
    for index, descriptor in enumerate(descriptors):
        guest.vm.memory.write(TABLE + 16 * index, struct.pack("<QIHH", *descriptor))


def make_available(guest: Guest, index: int = 1, head: int = 0) -> None:
    guest.vm.memory.write(AVAIL + 4, struct.pack("<H", head))
    guest.vm.memory.write(AVAIL + 2, struct.pack("<H", index))
    guest.set(guest.doorbell, 2, 0)


def loop(guest: Guest) -> None:
    describe(guest, (DATA, 16, NEXT, 1), (DATA, 16, NEXT, 0))
    make_available(guest)


def next_out_of_the_table(guest: Guest) -> None:
    describe(guest, (DATA, 16, NEXT, 999))
    make_available(guest)


def head_out_of_the_table(guest: Guest) -> None:
    make_available(guest, head=999)


def index_ahead_of_the_ring(guest: Guest) -> None:
    make_available(guest, index=1000)


def read_after_write(guest: Guest) -> None:
    describe(guest, (DATA, 16, WRITE | NEXT, 1), (DATA, 16, 0, 0))
    make_available(guest)


def four_gigabytes(guest: Guest) -> None:
    describe(guest, (DATA, 0xFFFF_FFFF, NEXT, 1), (DATA, 0xFFFF_FFFF, 0, 0))
    make_available(guest)


def indirect_that_was_not_agreed(guest: Guest) -> None:
    describe(guest, (DATA, 16, 4, 0))
    make_available(guest)


def nowhere(guest: Guest) -> None:
    describe(guest, (NOWHERE, 4096, NEXT, 1), (NOWHERE, 4096, WRITE, 0))
    make_available(guest)


def past_the_end_of_memory(guest: Guest) -> None:
    end = RAM_BYTES - 8
    describe(guest, (end, 4096, NEXT, 1), (end, 4096, WRITE, 0))
    make_available(guest)


def all_of_the_address_space(guest: Guest) -> None:
    describe(guest, (0, 0x7FFF_FFFF, NEXT, 1), (1 << 63, 0x7FFF_FFFF, WRITE, 0))
    make_available(guest)


def nothing_at_all(guest: Guest) -> None:
    describe(guest, (DATA, 0, NEXT, 1), (DATA, 0, WRITE, 0))
    make_available(guest)


def its_own_rings(guest: Guest) -> None:
    describe(guest, (TABLE, 4096, NEXT, 1), (USED, 4096, WRITE | NEXT, 2), (AVAIL, 4096, WRITE, 0))
    make_available(guest)


BREAKING = (
    loop,
    next_out_of_the_table,
    head_out_of_the_table,
    index_ahead_of_the_ring,
    read_after_write,
    four_gigabytes,
    indirect_that_was_not_agreed,
)
ODD = (nowhere, past_the_end_of_memory, all_of_the_address_space, nothing_at_all, its_own_rings)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, stack)


def begin(guest: Guest, queue: int) -> None:
    """Begin as an honest driver does, which only works when the device is sound."""
    for ring in (TABLE, AVAIL, USED):
        guest.vm.memory.write(ring, bytes(4096))
    guest.line.rose.clear()
    guest.drive(F_VERSION_1, queue)


def end(guest: Guest) -> None:
    """A reset, with whatever is in flight, and kicks at a device without queues."""
    guest.set(STATUS, 1, 0)
    assert guest.get(STATUS, 1) == 0
    guest.set(guest.doorbell, 2, 0)


@pytest.mark.parametrize("name", DEVICES)
def test_device_whose_ring_breaks_the_rules_needs_a_reset_and_recovers(lab: Lab, name: str) -> None:
    guest = lab.guest
    transport = guest.plug(DEVICES[name](lab))
    lab.stack.callback(transport.close)
    for queue in range(len(transport.device.queue_sizes)):
        for deed in BREAKING:
            begin(guest, queue)
            deed(guest)
            what = f"queue {queue}, {deed.__name__}"
            assert guest.line.rose.wait(PATIENCE_S), what
            assert guest.get(ISR, 1) & ISR_CONFIG, what
            assert guest.get(STATUS, 1) & NEEDS_RESET, what
            # A queue that is dead.
            guest.set(guest.doorbell, 2, 0)
            end(guest)


@pytest.mark.parametrize("name", DEVICES)
def test_device_given_buffers_that_make_no_sense_can_be_reset_at_once(lab: Lab, name: str) -> None:
    guest = lab.guest
    transport = guest.plug(DEVICES[name](lab))
    lab.stack.callback(transport.close)
    for queue in range(len(transport.device.queue_sizes)):
        for deed in ODD:
            begin(guest, queue)
            deed(guest)
            end(guest)
            # Sound again, and left without a request.
            begin(guest, queue)
            guest.set(STATUS, 1, 0)
    begin(guest, 0)
    end(guest)

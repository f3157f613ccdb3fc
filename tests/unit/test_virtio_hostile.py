"""Every virtio device with a driver that breaks the rules: none may crash, hang, or stay broken."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from virtio_devices import DEVICES, RAM_BYTES, Lab
from virtio_guest import AVAIL, DATA, PATIENCE_S, TABLE, USED, WRITE, Guest

from ostler.devices.virtio.device import F_VERSION_1
from ostler.devices.virtio.state import ISR_CONFIG, NEEDS_RESET

NEXT = 1
STATUS, ISR = 20, 0x1000
NOWHERE = 1 << 40


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

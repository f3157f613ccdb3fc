"""Both ring layouts with all their features, for every device: one implementation serves them."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from virtio_devices import DEVICES, Lab
from virtio_guest import AVAIL, DATA, PATIENCE_S, TABLE, USED, Guest

from ostler.devices.virtio.device import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
)
from ostler.devices.virtio.p9.wire import HEADER as HEADER_9P
from ostler.devices.virtio.p9.wire import T, text

NEXT, WRITE, INDIRECT = 1, 2, 4
PACKED_AVAILABLE, PACKED_USED = 1 << 7, 1 << 15
EVENT_AT_DESCRIPTOR = 2
SIZE, RESET_SIZE = 16, 8
INDIRECT_TABLE, SLOT_BYTES, ROOM_AT = 0xC00, 0x1000, 0x800
STATUS, SELECT, QUEUE_SIZE, VECTOR, ENABLE, ISR, RESET = 20, 22, 24, 26, 28, 0x1000, 58
ADDRESSES = {32: TABLE, 40: AVAIL, 48: USED}


@dataclass(frozen=True)
class Request:
    """A request that the device answers at once: on which queue, what is sent, room for more."""

    queue: int
    sent: bytes
    room: int = 0


def scsi_inquiry() -> bytes:
    return (
        bytes((1, 0, 0, 0, 0, 0, 0, 0)) + bytes(11) + bytes.fromhex("120000002400").ljust(32, b"\0")
    )


def version_9p() -> bytes:
    body = struct.pack("<I", 8192) + text(b"9P2000.L")
    return HEADER_9P.pack(HEADER_9P.size + len(body), T.VERSION, 0xFFFF) + body


REQUESTS = {
    "blk": Request(0, struct.pack("<IIQ", 8, 0, 0), 21),
    "scsi": Request(2, scsi_inquiry(), 108 + 36),
    "console": Request(1, b"abc"),
    "rng": Request(0, b"", 8),
    "balloon": Request(0, struct.pack("<I", 0x80)),
    "mem": Request(0, struct.pack("<H6xQH6x", 3, 1 << 32, 1), 10),
    "keyboard": Request(1, bytes(8)),
    # A reset of a connection that there is not.
    "vsock": Request(1, struct.pack("<QQIIIHHIII", 3, 2, 1, 1, 0, 1, 3, 0, 0, 0)),
    "share": Request(0, version_9p(), 64),
    "net": Request(1, bytes(12) + bytes.fromhex("ffffffffffff525400123456").ljust(60, b"\0")),
}


class Ring:
    """A driver of one queue. Chains have the numbers of the slots that their buffers lie in."""

    def __init__(self, guest: Guest, request: Request, packed: bool) -> None:
        self.guest, self.request, self.packed = guest, request, packed
        self.memory = guest.vm.memory

    def negotiate(self) -> None:
        """Take all features of rings; the device has to have offered them."""
        features = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX | F_IN_ORDER | F_RING_RESET
        features |= F_RING_PACKED if self.packed else 0
        self.guest.set(STATUS, 1, 0)
        self.guest.set(STATUS, 1, 3)
        for select in (0, 1):
            self.guest.set(0, 4, select)
            half = features >> 32 * select & 0xFFFF_FFFF
            assert self.guest.get(4, 4) & half == half
            self.guest.set(8, 4, select)
            self.guest.set(12, 4, half)
        self.guest.set(STATUS, 1, 3 | 8)
        self.enable(SIZE)
        self.guest.set(STATUS, 1, 3 | 8 | 4)
        assert self.guest.get(STATUS, 1) == 3 | 8 | 4

    def enable(self, size: int) -> None:
        """Begin with an empty ring of `size`."""
        self.size = size
        self.made = self.done = self.at = 0
        self.entries: list[int] = []
        for base in ADDRESSES.values():
            self.memory.write(base, bytes(4096))
        self.guest.set(SELECT, 2, self.request.queue)
        self.guest.set(QUEUE_SIZE, 2, size)
        self.guest.set(VECTOR, 2, 1)
        for offset, base in ADDRESSES.items():
            self.guest.set(offset, 8, base)
        self.guest.set(ENABLE, 2, 1)
        self.want_interrupt_after(0)

    def want_interrupt_after(self, more: int) -> None:
        """Ask for an interrupt once `more` buffers have been used, of one entry each, and one."""
        self.guest.line.rose.clear()
        if self.packed:
            at, laps = (self.at + more) % self.size, (self.at + more) // self.size
            event = struct.pack("<HH", at | (1 - laps % 2) << 15, EVENT_AT_DESCRIPTOR)
            self.memory.write(AVAIL, event)
        else:
            self.memory.write(AVAIL + 4 + 2 * self.size, struct.pack("<H", self.done + more))

    def pieces(self) -> list[tuple[int, int, int]]:
        """Address, length and flags of what the next chain consists of."""
        slot = DATA + SLOT_BYTES * self.made
        self.memory.write(slot, self.request.sent)
        self.memory.write(slot + ROOM_AT, bytes(self.request.room))
        found = [(slot, len(self.request.sent), 0)] if self.request.sent else []
        return found + ([(slot + ROOM_AT, self.request.room, WRITE)] if self.request.room else [])

    def offer(self, *, indirect: bool) -> None:
        """Make a chain available; `ring` tells the device."""
        pieces = self.pieces()
        if indirect:
            table = DATA + SLOT_BYTES * self.made + INDIRECT_TABLE
            self.write(table, pieces, ring=0)
            pieces = [(table, 16 * len(pieces), INDIRECT)]
        first = sum(self.entries)
        if self.packed:
            self.write(TABLE, pieces, ring=self.size, at=first, number=self.made)
        else:
            self.write(TABLE, pieces, ring=self.size, at=first)
            head = struct.pack("<H", first % self.size)
            self.memory.write(AVAIL + 4 + 2 * (self.made % self.size), head)
            self.memory.write(AVAIL + 2, struct.pack("<H", self.made + 1))
        self.entries.append(len(pieces))
        self.made += 1

    def write(
        self, table: int, pieces: list[tuple[int, int, int]], *, ring: int, at: int = 0,
        number: int = 0,
    ) -> None:  # fmt: skip
        """Write descriptors from place `at` on; in a `ring` the first becomes valid last."""
        written = []
        for index, (address, length, flags) in enumerate(pieces):
            place = (at + index) % ring if ring else index
            more = NEXT if index + 1 < len(pieces) and not (self.packed and not ring) else 0
            if self.packed and ring:
                first_lap = (at + index) // ring % 2 == 0
                more |= PACKED_AVAILABLE if first_lap else PACKED_USED
            last = (
                (number, flags | more)
                if self.packed
                else (flags | more, (place + 1) % (ring or SIZE))
            )
            written.append((place, struct.pack("<QIHH", address, length, *last)))
        for place, descriptor in reversed(written):
            self.memory.write(table + 16 * place, descriptor)

    def ring(self) -> None:
        """Tell the device."""
        self.guest.set(0x3000 + 4 * self.request.queue, 2, self.request.queue)

    def take(self) -> None:
        """Note what is used by now: in order, so that one answer may stand for several."""
        if not self.packed:
            self.done = struct.unpack("<H", self.memory.read(USED + 2, 2))[0]
            return
        descriptor = self.memory.read(TABLE + 16 * (self.at % self.size), 16)
        number, flags = struct.unpack_from("<HH", descriptor, 12)
        wrap = self.at // self.size % 2 == 0
        if bool(flags & PACKED_USED) == bool(flags & PACKED_AVAILABLE) == wrap:
            while self.done <= number:
                self.at += self.entries[self.done]
                self.done += 1

    def await_used(self, count: int) -> None:
        """Wait until so many chains have been used."""
        deadline = time.monotonic() + PATIENCE_S
        while self.done < count:
            assert time.monotonic() < deadline, f"{self.done} of {count} are used"
            self.take()
            time.sleep(0.001)
        if not self.packed:
            at = USED + 4 + 8 * ((count - 1) % self.size)
            head = sum(self.entries[: count - 1]) % self.size
            assert struct.unpack("<I", self.memory.read(at, 4))[0] == head

    def await_interrupt(self) -> None:
        """Wait for the interrupt, and acknowledge it."""
        assert self.guest.line.rose.wait(PATIENCE_S)
        assert self.guest.get(ISR, 1) & 1


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        yield Lab(tmp_path, stack)


def test_every_device_has_a_request() -> None:
    assert REQUESTS.keys() == DEVICES.keys()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("name", DEVICES)
def test_device_serves_rings_of_both_layouts_with_all_their_features(
    lab: Lab, name: str, packed: bool
) -> None:
    transport = lab.guest.plug(DEVICES[name](lab))
    lab.stack.callback(transport.close)
    ring = Ring(lab.guest, REQUESTS[name], packed)
    ring.negotiate()

    for number, indirect in enumerate((False, True), 1):
        ring.want_interrupt_after(0)
        ring.offer(indirect=indirect)
        ring.ring()
        ring.await_used(number)
        ring.await_interrupt()

    # The event index: none for the third buffer, one for the fourth.
    ring.want_interrupt_after(1)
    ring.offer(indirect=True)
    ring.ring()
    ring.await_used(3)
    assert not lab.guest.line.level
    ring.offer(indirect=True)
    ring.ring()
    ring.await_used(4)
    ring.await_interrupt()

    # Several at once come back in the order they were given.
    for _ in range(3):
        ring.offer(indirect=True)
    ring.ring()
    ring.await_used(7)

    # One queue is reset, and begins anew with another size.
    lab.guest.set(SELECT, 2, ring.request.queue)
    lab.guest.set(RESET, 2, 1)
    assert lab.guest.get(RESET, 2) == 0
    assert lab.guest.get(ENABLE, 2) == 0
    ring.enable(RESET_SIZE)
    ring.offer(indirect=False)
    ring.ring()
    ring.await_used(1)
    ring.await_interrupt()
    assert lab.guest.get(STATUS, 1) == 3 | 8 | 4

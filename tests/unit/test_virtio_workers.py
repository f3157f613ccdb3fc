"""virtio devices on the engine's bus, served by its workers, as a driver in Python uses them."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from virtio_guest import AVAIL, DATA, NEXT, PATIENCE_S, PAYLOAD, TABLE, USED, WRITE, Guest

from ostler.block import open_image
from ostler.block.formats.raw import RawImage
from ostler.devices.virtio.blk import VirtioBlk
from ostler.devices.virtio.console import VirtioConsole
from ostler.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1
from ostler.devices.virtio.rng import VirtioRng
from ostler.devices.virtio.workers import Queue


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.transport.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([sector + 1]) * 512 for sector in range(64)))
    return path


def test_blk_reads_writes_and_flushes_the_image(guest: Guest, disk: Path) -> None:
    with open_image(disk) as image:
        assert isinstance(image, RawImage)
        guest.plug(VirtioBlk(image, guest.workers, serial="serial-7"))
        guest.drive(F_VERSION_1 | F_EVENT_IDX | 1 << 9)
        assert guest.request(0, 5, (PAYLOAD, 1024, WRITE)) == 0
        assert guest.vm.memory.read(PAYLOAD, 1024) == b"\x06" * 512 + b"\x07" * 512
        guest.vm.memory.write(PAYLOAD, b"\xaa" * 512)
        assert guest.request(1, 9, (PAYLOAD, 512, 0)) == 0
        assert guest.request(4, 0) == 0
        assert disk.read_bytes()[9 * 512 : 10 * 512] == b"\xaa" * 512
        assert guest.request(8, 0, (PAYLOAD, 20, WRITE)) == 0
        assert guest.vm.memory.read(PAYLOAD, 20) == b"serial-7".ljust(20, b"\0")
        assert guest.request(0, 64, (PAYLOAD, 512, WRITE)) == 1


def test_blk_saved_while_running_goes_on_where_it_stood(guest: Guest, disk: Path) -> None:
    with open_image(disk) as image:
        assert isinstance(image, RawImage)
        transport = guest.plug(VirtioBlk(image, guest.workers))
        guest.drive()
        guest.request(4, 0)
        saved = transport.save()
        assert (saved["queues"][0]["next_avail"], saved["queues"][0]["next_used"]) == (1, 1)
        guest.host.reset()
        transport.load(saved)
        assert guest.request(0, 1, (PAYLOAD, 512, WRITE)) == 0
        assert guest.last_used() == (0, 513)


def test_rng_fills_buffers_and_msix_route_hears_of_it(guest: Guest) -> None:
    transport = guest.plug(VirtioRng(guest.workers))
    guest.drive()
    guest.offer((DATA, 64, WRITE))
    assert guest.await_interrupt() == (0, 64)
    assert guest.vm.memory.read(DATA, 64) != bytes(64)
    capability = transport.read(0x34, 1)
    while transport.read(capability, 1) != 0x11:
        capability = transport.read(capability + 1, 1)
    transport.write(capability + 2, 2, 0x8000)
    guest.offer((DATA, 64, WRITE))
    # The route is masked, so it keeps the interrupt.
    deadline = time.monotonic() + PATIENCE_S
    while not guest.routes[1].pending and time.monotonic() < deadline:
        os.sched_yield()
    assert guest.routes[1].pending
    assert not guest.routes[0].pending


def test_console_output_reaches_the_host_and_input_the_guest(guest: Guest) -> None:
    to_guest, from_guest = os.pipe(), os.pipe()
    try:
        guest.plug(VirtioConsole((to_guest[0], from_guest[1]), guest.workers))
        guest.drive(queue=1)
        guest.vm.memory.write(DATA, b"login: ")
        guest.offer((DATA, 7, 0))
        guest.await_interrupt()
        assert os.read(from_guest[0], 64) == b"login: "
        guest.vm.memory.write(AVAIL, bytes(64))
        guest.vm.memory.write(USED, bytes(256))
        guest.available = 0
        guest.drive(queue=0)
        guest.offer((DATA, 64, WRITE))
        os.write(to_guest[1], b"root\n")
        assert guest.await_interrupt() == (0, 5)
        assert guest.vm.memory.read(DATA, 5) == b"root\n"
    finally:
        for fd in (*to_guest, *from_guest):
            os.close(fd)


def test_broken_ring_sets_needs_reset_and_reset_recovers(guest: Guest) -> None:
    guest.plug(VirtioRng(guest.workers))
    guest.drive()
    guest.vm.memory.write(TABLE, struct.pack("<QIHH", DATA, 16, WRITE | NEXT, 0))
    guest.vm.memory.write(AVAIL + 2, struct.pack("<H", 1))
    guest.set(guest.doorbell, 2, 0)
    assert guest.line.rose.wait(PATIENCE_S)
    assert guest.get(20, 1) & 64
    assert guest.get(0x1000, 1) == 2
    guest.vm.memory.write(AVAIL + 2, struct.pack("<H", 0))
    guest.drive()
    guest.offer((DATA, 8, WRITE))
    assert guest.await_interrupt() == (0, 8)


def test_rings_outside_memory_set_needs_reset(guest: Guest) -> None:
    guest.plug(VirtioRng(guest.workers))
    guest.vm.memory.remove_slot(0)
    with pytest.raises(AssertionError):
        guest.drive()
    assert guest.get(20, 1) & 64


def test_worker_refuses_impossible_queues_and_stops_twice(guest: Guest) -> None:
    kick = os.eventfd(0)
    try:
        sound = Queue(
            index=0,
            size=16,
            desc_table=TABLE,
            avail_ring=AVAIL,
            used_ring=USED,
            next_avail=7,
            next_used=7,
            event_idx=False,
            indirect=True,
            packed=False,
            kick_fd=kick,
            interrupt=None,
            on_broken=lambda: None,
        )
        guest.vm.memory.write(AVAIL + 2, struct.pack("<H", 7))
        for wrong in (
            replace(sound, size=24),
            replace(sound, desc_table=1 << 40),
            replace(sound, used_ring=USED + 1),
        ):
            with pytest.raises(ValueError, match="driver"):
                guest.workers.rng(wrong, 0)
        worker = guest.workers.rng(sound, 0)
        assert worker.position() == (7, 7)
        assert worker.stop() == worker.stop() == (7, 7)
    finally:
        os.close(kick)
        guest.plug(VirtioRng(guest.workers))


def test_indirect_chain_is_served_only_when_negotiated(guest: Guest) -> None:
    guest.plug(VirtioRng(guest.workers))
    guest.drive(F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC)
    guest.vm.memory.write(DATA, struct.pack("<QIHH", DATA + 0x100, 32, WRITE, 0))
    guest.offer((DATA, 16, 4))
    assert guest.await_interrupt() == (0, 32)


@pytest.mark.parametrize("limits", [(0, 20), (20_000, 0)])
def test_blk_within_limits_makes_requests_wait(
    guest: Guest, disk: Path, limits: tuple[int, int]
) -> None:
    with open_image(disk) as image:
        assert isinstance(image, RawImage)
        device = VirtioBlk(image, guest.workers, limits=limits)
        guest.plug(device)
        guest.drive()
        started = time.monotonic()
        for sector in range(35):
            assert guest.request(0, sector, (PAYLOAD, 1024, WRITE)) == 0
        # 34 were paid for before the last began, with 50 ms each, but for the second saved before.
        assert time.monotonic() - started >= 0.6
        assert guest.vm.memory.read(PAYLOAD, 512) == b"\x23" * 512
        device.limit(0, 0)
        assert guest.request(0, 9, (PAYLOAD, 1024, WRITE)) == 0

"""virtio-balloon: its configuration space, the roles of its queues, and memory that goes back."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest
from virtio_guest import DATA, WRITE, Guest

from ostler.devices.virtio.balloon import (
    F_FREE_PAGE_HINT,
    F_PAGE_REPORTING,
    F_STATS_VQ,
    HINT_DONE,
    VirtioBalloon,
)
from ostler.devices.virtio.device import F_EVENT_IDX, F_VERSION_1
from ostler.testing.pci import FakeWorkers

RAM_BYTES = 1 << 20
PAGE = 4096
PATIENCE_S = 20


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.transport.close()


@pytest.fixture
def fake() -> Iterator[tuple[VirtioBalloon, FakeWorkers]]:
    workers = FakeWorkers()
    balloon = VirtioBalloon(workers, RAM_BYTES)
    yield balloon, workers
    balloon.close()


def plug(guest: Guest, features: int, queue: int) -> VirtioBalloon:
    """The balloon, with one of its queues driven; all of memory holds 0xaa from 0x20000 on."""
    balloon = VirtioBalloon(guest.workers, RAM_BYTES)
    guest.plug(balloon)
    guest.drive(F_VERSION_1 | F_EVENT_IDX | features, queue)
    guest.vm.memory.write(0x20000, b"\xaa" * 0x20000)
    return balloon


def pages_emptied(guest: Guest) -> list[int]:
    """Which pages from 0x20000 on hold zeros."""
    pages = range(0x20, 0x40)
    return [page for page in pages if guest.vm.memory.read(page * PAGE, PAGE) == bytes(PAGE)]


def test_inflated_pages_are_emptied_and_counted(guest: Guest) -> None:
    balloon = plug(guest, 0, queue=0)
    wanted = (0x23, 0x22, 0x30, 0x23, 0xFFFF_FFFF)
    guest.vm.memory.write(DATA, struct.pack("<5I", *wanted))
    guest.offer((DATA, 8, 0), (DATA + 8, 12, 0))
    guest.await_interrupt()
    assert pages_emptied(guest) == [0x22, 0x23, 0x30]
    assert balloon.returned_bytes == 3 * PAGE


def test_reported_pages_are_emptied_unless_the_guest_poisons_them(guest: Guest) -> None:
    balloon = plug(guest, F_PAGE_REPORTING, queue=2)
    balloon.write(12, 4, 0xAA)
    guest.offer((0x21000, 2 * PAGE, WRITE))
    guest.await_interrupt()
    assert pages_emptied(guest) == []
    balloon.write(12, 4, 0)
    guest.offer((0x21000, 2 * PAGE, WRITE), (0x24800, PAGE + 0x800, WRITE))
    guest.await_interrupt()
    assert pages_emptied(guest) == [0x21, 0x22, 0x25]


def test_hinted_pages_are_emptied_and_the_round_ends_when_the_driver_stops(guest: Guest) -> None:
    balloon = plug(guest, F_FREE_PAGE_HINT, queue=2)
    balloon.collect_free_pages()
    (command,) = struct.unpack_from("<I", balloon.config(), 8)
    guest.vm.memory.write(DATA, struct.pack("<II", command, 0))
    guest.line.rose.clear()
    guest.get(0x1000, 1)
    guest.offer((DATA, 4, 0))
    guest.await_interrupt()
    guest.offer((0x28000, PAGE, WRITE))
    guest.await_interrupt()
    assert pages_emptied(guest) == [0x28]
    guest.offer((DATA + 4, 4, 0))
    assert guest.line.rose.wait(PATIENCE_S)
    assert struct.unpack_from("<I", balloon.config(), 8) == (HINT_DONE,)
    balloon.collect_free_pages()
    assert struct.unpack_from("<I", balloon.config(), 8) == (command + 1,)


def test_statistics_come_at_first_and_when_asked_for(guest: Guest) -> None:
    balloon = plug(guest, F_STATS_VQ, queue=2)
    guest.vm.memory.write(DATA, struct.pack("<HQHQHQ", 4, 1000, 5, 9000, 77, 1))
    got: list[dict[str, int] | None] = []
    asking = threading.Thread(target=lambda: got.append(balloon.fresh_statistics(PATIENCE_S)))
    asking.start()
    guest.offer((DATA, 30, 0))
    guest.await_interrupt()
    guest.vm.memory.write(DATA, struct.pack("<HQ", 4, 2000))
    guest.offer((DATA, 10, 0))
    asking.join()
    assert got[0] in ({"free_bytes": 1000, "total_bytes": 9000}, {"free_bytes": 2000})
    assert balloon.fresh_statistics(0) is None


def test_queues_left_out_move_the_others_up(fake: tuple[VirtioBalloon, FakeWorkers]) -> None:
    balloon, _ = fake
    every = F_STATS_VQ | F_FREE_PAGE_HINT | F_PAGE_REPORTING

    def kinds(features: int) -> list[str]:
        names = {"inflate": "inflate", "deflate": "deflate", "reports": "reports"}
        served = balloon._roles(features)
        return [names.get(getattr(serve, "__name__", ""), "other") for serve in served]

    assert kinds(every) == ["inflate", "deflate", "other", "other", "reports"]
    assert kinds(F_PAGE_REPORTING)[:3] == ["inflate", "deflate", "reports"]


def test_target_is_what_the_guest_keeps_and_survives_a_driver_reset(
    fake: tuple[VirtioBalloon, FakeWorkers],
) -> None:
    balloon, _ = fake
    told: list[bytes] = []
    balloon.announce_config = lambda: told.append(balloon.config())
    balloon.set_target(RAM_BYTES - 10 * PAGE)
    assert struct.unpack_from("<II", told[0]) == (10, 0)
    balloon.write(4, 4, 7)
    assert balloon.guest_bytes == RAM_BYTES - 7 * PAGE
    balloon.reset()
    assert (balloon.target_bytes, balloon.guest_bytes) == (RAM_BYTES - 10 * PAGE, RAM_BYTES)


def test_actual_larger_than_the_memory_is_a_guest_without_memory(
    fake: tuple[VirtioBalloon, FakeWorkers],
) -> None:
    balloon, _ = fake
    balloon.write(4, 4, 0xFFFF_FFFF)
    assert balloon.guest_bytes == 0


def test_features_follow_the_options() -> None:
    plain = VirtioBalloon(FakeWorkers(), RAM_BYTES, deflate_on_oom=False, reporting=False)
    assert (plain.features, len(plain.queue_sizes)) == (0b11010, 4)
    plain.close()

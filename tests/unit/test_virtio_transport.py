"""The virtio PCI transport as a driver sees it."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ostler.devices.pci.host import PciHost
from ostler.devices.virtio.blk import VirtioBlk
from ostler.devices.virtio.console import VirtioConsole
from ostler.devices.virtio.device import (
    F_EVENT_IDX,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
)
from ostler.devices.virtio.rng import VirtioRng
from ostler.devices.virtio.transport import VirtioPci
from ostler.errors import StateError
from ostler.testing.pci import FakeBus, FakeImage, FakeLine, FakeRoute, FakeWorkers

RESET, ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 0, 1, 2, 4, 8, 64
COMMON, NOTIFY, ISR, DEVICE, PCI = 1, 2, 3, 4, 5


@dataclass
class Driver:
    """A driver that knows nothing but configuration space."""

    bus: FakeBus
    line: FakeLine
    routes: list[FakeRoute]
    workers: FakeWorkers
    device: VirtioPci

    def config(self, offset: int, size: int = 4) -> int:
        return self.bus.read("mmio", 0xE000_8000 + offset, size)

    def set_config(self, offset: int, size: int, value: int) -> None:
        self.bus.write("mmio", 0xE000_8000 + offset, size, value)

    def capability(self, kind: int) -> tuple[int, int, int]:
        """Offset of the capability, address and length of what it describes."""
        at = self.config(0x34, 1)
        while at:
            if self.config(at, 1) == 9 and self.config(at + 3, 1) == kind:
                base = self.config(0x10) & ~0xF
                return at, base + self.config(at + 8), self.config(at + 12)
            at = self.config(at + 1, 1)
        raise LookupError(kind)

    def get(self, offset: int, size: int) -> int:
        return self.bus.read("mmio", self.capability(COMMON)[1] + offset, size)

    def set(self, offset: int, size: int, value: int) -> None:
        self.bus.write("mmio", self.capability(COMMON)[1] + offset, size, value)

    @property
    def status(self) -> int:
        return self.get(20, 1)

    def offered(self) -> int:
        features = 0
        for select in (0, 1):
            self.set(0, 4, select)
            features |= self.get(4, 4) << 32 * select
        return features

    def choose(self, features: int) -> None:
        for select in (0, 1):
            self.set(8, 4, select)
            self.set(12, 4, features >> 32 * select & 0xFFFF_FFFF)

    def negotiate(self, features: int = F_VERSION_1) -> None:
        self.set(20, 1, RESET)
        self.set(20, 1, ACKNOWLEDGE | DRIVER)
        self.choose(features)
        self.set(20, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK)

    def enable_msix(self) -> None:
        at = self.config(0x34, 1)
        while self.config(at, 1) != 0x11:
            at = self.config(at + 1, 1)
        self.set_config(at + 2, 2, 0x8000)
        table = (self.config(0x10) & ~0xF) + self.config(at + 4)
        for vector in range(len(self.routes)):
            self.bus.write("mmio", table + 16 * vector, 8, 0xFEE0_0000)
            self.bus.write("mmio", table + 16 * vector + 8, 8, 0x30 + vector)

    def set_up_queue(self, index: int = 0, size: int = 64, vector: int = 1) -> None:
        self.set(22, 2, index)
        self.set(24, 2, size)
        self.set(26, 2, vector)
        for offset, address in ((32, 0x1_0000_1000), (40, 0x2000), (48, 0x3000)):
            self.set(offset, 4, address & 0xFFFF_FFFF)
            self.set(offset + 4, 4, address >> 32)
        self.set(28, 2, 1)

    def start(self, features: int = F_VERSION_1, vector: int = 1) -> None:
        self.negotiate(features)
        self.set_up_queue(vector=vector)
        self.set(20, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)


def attach(device: VirtioPci, workers: FakeWorkers) -> Driver:
    bus, routes, lines = FakeBus(), [], {gsi: FakeLine() for gsi in range(16, 20)}

    def new_route() -> FakeRoute:
        routes.append(FakeRoute())
        return routes[-1]

    host = PciHost(bus, lines.__getitem__, new_route)
    host.attach(device)
    return Driver(bus, lines[17], routes, workers, device)


@pytest.fixture
def rng() -> Iterator[Driver]:
    workers = FakeWorkers()
    driver = attach(VirtioPci(VirtioRng(workers)), workers)
    yield driver
    driver.device.close()


@pytest.fixture
def blk() -> Iterator[Driver]:
    workers = FakeWorkers()
    driver = attach(VirtioPci(VirtioBlk(FakeImage(), workers, serial="OST-1")), workers)
    yield driver
    driver.device.close()


def test_identity_is_modern_virtio(rng: Driver) -> None:
    assert rng.config(0) == 0x1044_1AF4
    assert rng.config(8, 1) == 1
    assert rng.get(18, 2) == 1


def test_capabilities_describe_disjoint_parts_of_the_bar(blk: Driver) -> None:
    parts = sorted(blk.capability(kind)[1:] for kind in (COMMON, NOTIFY, ISR, DEVICE))
    for (start, length), (following, _) in itertools.pairwise(parts):
        assert start + length <= following
    assert blk.config(blk.capability(NOTIFY)[0] + 16) == 4


def test_features_unknown_or_without_version_1_are_refused(rng: Driver) -> None:
    for features in (0, F_VERSION_1 | 1 << 5, F_VERSION_1 | 1 << 63):
        rng.negotiate(features)
        assert not rng.status & FEATURES_OK
    rng.negotiate(rng.offered())
    assert rng.status == ACKNOWLEDGE | DRIVER | FEATURES_OK


def test_features_that_need_each_other_are_refused_apart(blk: Driver) -> None:
    wce, flush = 1 << 11, 1 << 9
    blk.negotiate(F_VERSION_1 | wce)
    assert not blk.status & FEATURES_OK
    blk.negotiate(F_VERSION_1 | wce | flush)
    assert blk.status & FEATURES_OK


def test_features_are_fixed_after_features_ok(rng: Driver) -> None:
    rng.negotiate(F_VERSION_1)
    rng.choose(F_VERSION_1 | F_EVENT_IDX)
    rng.set(8, 4, 0)
    assert rng.get(12, 4) == 0


def test_feature_select_past_64_bits_reads_zero(rng: Driver) -> None:
    rng.set(0, 4, 7)
    assert rng.get(4, 4) == 0
    rng.set(8, 4, 7)
    rng.set(12, 4, 0xFFFF_FFFF)
    assert rng.get(12, 4) == 0


def test_driver_ok_without_features_ok_starts_nothing(rng: Driver) -> None:
    rng.set(20, 1, ACKNOWLEDGE | DRIVER | DRIVER_OK)
    assert not rng.status & DRIVER_OK
    assert not rng.workers.started


def test_status_bits_reserved_or_the_devices_are_not_stored(rng: Driver) -> None:
    rng.set(20, 1, 0xFF & ~(FEATURES_OK | DRIVER_OK))
    assert rng.status == ACKNOWLEDGE | DRIVER | 128


def test_driver_ok_starts_enabled_queues_with_their_geometry(rng: Driver) -> None:
    rng.enable_msix()
    rng.start(F_VERSION_1 | F_EVENT_IDX)
    (worker,) = rng.workers.started
    queue = worker.queue
    assert (queue.size, queue.event_idx, queue.indirect) == (64, True, False)
    assert (queue.desc_table, queue.avail_ring, queue.used_ring) == (0x1_0000_1000, 0x2000, 0x3000)
    assert queue.interrupt is rng.routes[1]


def test_queue_not_enabled_is_not_served() -> None:
    workers = FakeWorkers()
    driver = attach(VirtioPci(VirtioConsole((0, 1), workers)), workers)
    driver.negotiate()
    driver.set_up_queue(1)
    driver.set(20, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    assert [worker.kind for worker in workers.started] == ["output"]
    driver.device.close()


def test_queue_size_odd_or_too_large_is_ignored(rng: Driver) -> None:
    for size in (0, 3, 128, 0x8000):
        rng.set(24, 2, size)
        assert rng.get(24, 2) == 64
    rng.set(24, 2, 16)
    assert rng.get(24, 2) == 16


def test_queue_of_a_packed_ring_may_have_any_size_and_starts_at_wrap_one(rng: Driver) -> None:
    rng.negotiate(F_VERSION_1 | F_RING_PACKED)
    rng.set_up_queue(size=24)
    rng.set(20, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
    (worker,) = rng.workers.started
    assert (worker.queue.size, worker.queue.packed) == (24, True)
    assert (worker.queue.next_avail, worker.queue.next_used) == (0x8000, 0x8000)


def test_queue_reset_and_enabled_again_starts_over(rng: Driver) -> None:
    rng.start(F_VERSION_1 | F_RING_RESET | F_RING_PACKED)
    rng.workers.started[0].at = (7, 0x8003)
    rng.set(58, 2, 1)
    rng.set_up_queue(size=16)
    assert rng.workers.started[1].queue.next_avail == 0x8000


def test_ring_features_that_a_device_leaves_out_are_not_offered(rng: Driver) -> None:
    assert rng.offered() & F_RING_PACKED
    rng.device.device.ring_features &= ~F_RING_PACKED
    assert not rng.offered() & F_RING_PACKED
    rng.negotiate(F_VERSION_1 | F_RING_PACKED)
    assert not rng.status & FEATURES_OK


def test_queue_enabled_keeps_its_geometry(rng: Driver) -> None:
    rng.negotiate()
    rng.set_up_queue()
    rng.set(24, 2, 8)
    rng.set(32, 4, 0)
    rng.set(28, 2, 0)
    assert (rng.get(24, 2), rng.get(32, 4), rng.get(28, 2)) == (64, 0x1000, 1)


def test_queue_that_does_not_exist_has_size_zero_and_takes_no_stores(rng: Driver) -> None:
    rng.set(22, 2, 9)
    rng.set(24, 2, 16)
    rng.set(28, 2, 1)
    assert (rng.get(24, 2), rng.get(28, 2), rng.get(30, 2)) == (0, 0, 0)


def test_vector_that_does_not_exist_reads_back_no_vector(rng: Driver) -> None:
    rng.set(16, 2, 2)
    assert rng.get(16, 2) == 0xFFFF
    rng.set(16, 2, 1)
    assert rng.get(16, 2) == 1


def test_reset_stops_workers_before_status_reads_zero(rng: Driver) -> None:
    rng.start()
    (worker,) = rng.workers.started
    rng.set(20, 1, RESET)
    assert worker.stopped
    assert rng.status == 0
    rng.set(22, 2, 0)
    assert (rng.get(28, 2), rng.get(32, 8), rng.get(24, 2)) == (0, 0, 64)


def test_reset_keeps_pci_configuration(rng: Driver) -> None:
    rng.enable_msix()
    bar = rng.config(0x10)
    rng.start()
    rng.set(20, 1, RESET)
    assert rng.config(0x10) == bar
    rng.start()
    assert rng.workers.started[1].queue.interrupt is rng.routes[1]


def test_rings_outside_memory_need_a_reset(rng: Driver) -> None:
    rng.workers.refuse = True
    rng.enable_msix()
    rng.set(16, 2, 0)
    rng.start()
    assert rng.status & NEEDS_RESET
    rng.workers.refuse = False
    rng.start()
    assert not rng.status & NEEDS_RESET
    assert len(rng.workers.started) == 1


def test_broken_ring_needs_a_reset_and_interrupts_the_configuration_vector(rng: Driver) -> None:
    rng.enable_msix()
    rng.start()
    rng.set(16, 2, 0)
    rng.workers.started[0].queue.on_broken()
    rng.workers.started[0].queue.on_broken()
    assert rng.status & NEEDS_RESET
    assert len(rng.routes[0].sent) == 1


def test_intx_queue_interrupt_raises_the_line_until_isr_is_read(rng: Driver) -> None:
    rng.start()
    interrupt = rng.workers.started[0].queue.interrupt
    assert callable(interrupt)
    interrupt()
    assert rng.line.level
    isr = rng.capability(ISR)[1]
    assert rng.bus.read("mmio", isr, 1) == 1
    assert not rng.line.level
    assert rng.bus.read("mmio", isr, 1) == 0


def test_no_vector_with_msix_announces_nothing(rng: Driver) -> None:
    rng.enable_msix()
    rng.start(vector=0xFFFF)
    assert rng.workers.started[0].queue.interrupt is None


def test_msix_switched_while_running_restarts_where_the_worker_stood(rng: Driver) -> None:
    rng.start()
    rng.workers.started[0].at = (5, 4)
    rng.enable_msix()
    first, second = rng.workers.started
    assert first.stopped
    assert (second.queue.next_avail, second.queue.next_used) == (5, 4)
    assert second.queue.interrupt is rng.routes[1]


def test_queue_reset_stops_one_queue_and_allows_new_geometry(rng: Driver) -> None:
    rng.start(F_VERSION_1 | F_RING_RESET)
    rng.set(22, 2, 0)
    rng.set(58, 2, 1)
    assert rng.workers.started[0].stopped
    assert (rng.get(58, 2), rng.get(28, 2), rng.get(24, 2)) == (0, 0, 64)
    rng.set_up_queue(size=32)
    assert rng.workers.started[1].queue.size == 32


def test_queue_reset_not_negotiated_is_ignored(rng: Driver) -> None:
    rng.start()
    rng.set(58, 2, 1)
    assert not rng.workers.started[0].stopped


def test_doorbell_is_an_eventfd_of_its_queue(rng: Driver) -> None:
    rng.bus.write("mmio", rng.capability(NOTIFY)[1], 2, 0)
    assert rng.bus.rings == rng.device.kick_fds


def test_access_window_reads_and_writes_through_to_the_bar(rng: Driver) -> None:
    at = rng.capability(PCI)[0]
    rng.set_config(at + 4, 1, 0)
    rng.set_config(at + 8, 4, 20)
    rng.set_config(at + 12, 4, 1)
    rng.set_config(at + 16, 1, ACKNOWLEDGE)
    assert rng.status == ACKNOWLEDGE
    assert rng.config(at + 16, 1) == ACKNOWLEDGE
    # A load that is narrower than the window gets as much as it asks for.
    rng.set_config(at + 8, 4, 12)
    rng.set_config(at + 12, 4, 4)
    rng.set_config(at + 16, 4, 0x44332211)
    loaded = [rng.config(at + 16 + byte, size) for byte, size in ((0, 1), (1, 2), (3, 1), (0, 4))]
    assert loaded == [0x11, 0x3322, 0x44, 0x44332211]
    rng.set_config(at + 8, 4, 0x3000)
    rng.set_config(at + 12, 4, 2)
    rng.set_config(at + 16, 2, 0)
    assert os.eventfd_read(rng.device.kick_fds[0]) == 1


@pytest.mark.parametrize(("bar", "offset", "length"), [(7, 0, 4), (0, 0xFFFF_FFFF, 4), (0, 0, 3)])
def test_access_window_pointing_nowhere_is_harmless(
    rng: Driver, bar: int, offset: int, length: int
) -> None:
    at = rng.capability(PCI)[0]
    rng.set_config(at + 4, 1, bar)
    rng.set_config(at + 8, 4, offset)
    rng.set_config(at + 12, 4, length)
    rng.set_config(at + 16, 4, 0xFFFF_FFFF)
    assert rng.config(at + 16, 4) in (0, 0xFFFF_FFFF)
    assert rng.status == 0


def test_common_registers_take_any_access_without_raising(rng: Driver) -> None:
    for offset in range(60):
        for size in (1, 2, 4, 8):
            for value in (0, (1 << 8 * size) - 1):
                rng.set(offset, size, value)
                rng.get(offset, size)


def test_state_saved_while_running_starts_again_at_the_same_position(rng: Driver) -> None:
    rng.enable_msix()
    rng.start()
    rng.workers.started[0].at = (9, 8)
    saved = rng.device.save()
    rng.device.reset()
    assert rng.workers.started[0].stopped
    rng.device.load(saved)
    assert rng.workers.started[1].at == (9, 8)
    assert rng.device.save() == saved


@pytest.mark.parametrize(
    "damage",
    [
        {"queues": []},
        {"status": 256},
        {"driver_features": 1 << 64},
        {"device": {"version": 1, "colour": 3}},
    ],
)
def test_state_damaged_is_refused_and_changes_nothing(
    rng: Driver, damage: dict[str, object]
) -> None:
    rng.start()
    before = rng.device.save()
    with pytest.raises(StateError):
        rng.device.load(before | damage)
    assert rng.device.save() == before
    assert not rng.workers.started[0].stopped


def test_blk_configuration_says_what_the_disk_is(blk: Driver) -> None:
    address, length = blk.capability(DEVICE)[1:]
    assert length == 60
    data = bytes(blk.bus.read("mmio", address + n, 1) for n in range(length))
    assert struct.unpack_from("<QII", data) == (2048, 0, 254)
    assert struct.unpack_from("<IB", data, 20) == (512, 3)
    assert data[32] == 1
    assert struct.unpack_from("<H", data, 34) == (1,)
    assert struct.unpack_from("<IIIIIB", data, 36) == (1 << 22, 16, 8, 1 << 22, 16, 1)
    assert blk.workers.disks[0].serial == b"OST-1".ljust(20, b"\0")


def test_blk_cache_mode_switches_and_reset_restores_it(blk: Driver) -> None:
    address = blk.capability(DEVICE)[1]
    blk.negotiate(F_VERSION_1 | 1 << 9 | 1 << 11)
    blk.bus.write("mmio", address + 32, 1, 0)
    assert not blk.workers.disks[0].writeback
    assert blk.bus.read("mmio", address + 32, 1) == 0
    blk.set(20, 1, RESET)
    assert blk.bus.read("mmio", address + 32, 1) == 1


def test_blk_driver_that_cannot_flush_gets_no_write_cache(blk: Driver) -> None:
    blk.start(F_VERSION_1)
    assert not blk.workers.disks[0].writeback
    blk.start(F_VERSION_1 | 1 << 9)
    assert blk.workers.disks[0].writeback


def test_blk_read_only_offers_ro_and_nothing_that_writes() -> None:
    workers = FakeWorkers()
    features = VirtioBlk(FakeImage(readonly=True), workers).features
    assert features & 1 << 5
    assert not features & (1 << 13 | 1 << 14)


def test_console_resize_tells_the_driver() -> None:
    workers = FakeWorkers()
    console = VirtioConsole((0, 1), workers)
    driver = attach(VirtioPci(console), workers)
    driver.start()
    generation = driver.get(21, 1)
    console.resize(132, 50)
    assert driver.bus.read("mmio", driver.capability(DEVICE)[1], 4) == 132 | 50 << 16
    assert driver.get(21, 1) != generation
    assert driver.bus.read("mmio", driver.capability(ISR)[1], 1) == 2
    driver.device.close()

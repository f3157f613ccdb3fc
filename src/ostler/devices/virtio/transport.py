"""virtio over PCI, modern interface (virtio 1.2, section 4.1): the registers and the life cycle.

The transport negotiates features, holds the queues' addresses, and starts a worker per queue when
the driver sets DRIVER_OK. It stops them on reset, which completes before the write of 0 returns.

Not modelled: the legacy and transitional interfaces, notification data, shared memory regions,
administration queues.
"""

from __future__ import annotations

import operator
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

from ostler.devices.pci.config_space import Bar, Identity
from ostler.devices.pci.device import PciDevice, Region
from ostler.devices.pci.msix import MsiRoute, Msix
from ostler.devices.virtio.device import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_RING_RESET,
    F_VERSION_1,
    VirtioDevice,
)
from ostler.devices.virtio.registers import (
    COMMON_BYTES,
    ISR_BYTES,
    CommonConfig,
    DeviceConfig,
    IsrStatus,
)
from ostler.devices.virtio.state import (
    DRIVER_BITS,
    DRIVER_OK,
    FEATURES_OK,
    ISR_CONFIG,
    ISR_QUEUE,
    NO_VECTOR,
    QueueState,
    VirtioPciState,
)
from ostler.devices.virtio.workers import Queue, Worker
from ostler.errors import StateError

VENDOR = 0x1AF4
FIRST_DEVICE = 0x1040
VENDOR_CAPABILITY = 0x09
# Where the structures lie in BAR 0.
BAR_BYTES = 0x8000
COMMON_OFFSET = 0x0000
ISR_OFFSET = 0x1000
DEVICE_OFFSET = 0x2000
NOTIFY_OFFSET, NOTIFY_STRIDE = 0x3000, 4
TABLE_OFFSET = 0x4000
PBA_OFFSET = 0x6000

CAP_COMMON, CAP_NOTIFY, CAP_ISR, CAP_DEVICE, CAP_PCI = 1, 2, 3, 4, 5
CAP_BODY_BYTES = 14
CAP_DATA_OFFSET = 16


class VirtioPci(PciDevice[VirtioPciState]):
    """A virtio device behind its PCI function; attach it with `PciHost.attach`."""

    name = "virtio-pci"
    State = VirtioPciState

    def __init__(self, device: VirtioDevice[Any]) -> None:
        self.device = device
        self.kick_fds = [
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in device.queue_sizes
        ]
        self._closed = False
        self._isr_lock = threading.Lock()
        self._workers: dict[int, Worker] = {}
        number = FIRST_DEVICE + device.device_id
        super().__init__(
            Identity(VENDOR, number, device.pci_class, 1, VENDOR, number, interrupt_pin=1),
            (Bar(0, BAR_BYTES, "mem64"),),
            self._regions(),
            Msix(len(device.queue_sizes) + 1, 0, TABLE_OFFSET, PBA_OFFSET),
        )
        self._window_offset = self._add_capabilities()
        device.announce_config = self.config_changed

    @property
    def features(self) -> int:
        """The feature bits offered to the driver."""
        return self.device.features | self.device.ring_features

    @property
    def running(self) -> bool:
        """Whether the driver has set DRIVER_OK."""
        return bool(self.state.status & DRIVER_OK)

    def close(self) -> None:
        """Stop the workers and close the doorbells; the device is not usable afterwards."""
        with self.lock:
            self._stop_all()
            if not self._closed:
                self._closed = True
                for fd in self.kick_fds:
                    os.close(fd)
                self.device.close()

    # -- life cycle ---------------------------------------------------------------------------

    def power_up(self) -> VirtioPciState:
        """The state after power-up."""
        state = super().power_up()
        state.queues = [QueueState(size) for size in self.device.queue_sizes]
        return state

    def replace(self, state: Any) -> None:
        """Take `state`, the device's included, and serve the queues it says are started."""
        self.check(state)
        parse = self.device.State.from_dict
        device_state = parse(state.device) if state.device else self.device.State()
        self._stop_all()
        self.device.replace(device_state)
        super().replace(state)
        self._start_all()

    def check(self, state: VirtioPciState) -> None:
        """Raise `StateError` unless `state` can be this device's."""
        super().check(state)
        sizes = [queue.size for queue in state.queues]
        limits = self.device.queue_sizes
        if len(sizes) != len(limits) or any(map(operator.gt, sizes, limits)):
            raise StateError(f"{self.name}: saved with queues {sizes}, has {list(limits)}")

    def save(self) -> dict[str, Any]:
        """The state as plain data, with the positions of the queues being served."""
        with self.lock:
            for index, worker in self._workers.items():
                self._note_position(index, worker.position())
            self.state.device = self.device.save()
            return super().save()

    def set_status(self, value: int) -> None:
        """The driver's store to `device_status`: bits are added, 0 resets."""
        if value == 0:
            self._reset_virtio()
            return
        added = value & DRIVER_BITS & ~self.state.status
        if added & FEATURES_OK and not self._features_acceptable():
            added &= ~FEATURES_OK
        if added & DRIVER_OK and not (self.state.status | added) & FEATURES_OK:
            added &= ~DRIVER_OK
        self.state.status |= added
        if added & DRIVER_OK:
            self._start_all()

    def fail(self) -> None:
        """Ask the driver for a reset (DEVICE_NEEDS_RESET). From any thread, without `lock`."""
        with self._isr_lock:
            if self.state.needs_reset:
                return
            self.state.needs_reset = True
        if self.running:
            self._config_interrupt()

    def config_changed(self) -> None:
        """Tell the driver that the device's configuration space has changed.

        From any thread, without `lock`: a worker that calls this may be waited for under it.
        """
        with self._isr_lock:
            self.state.generation = (self.state.generation + 1) & 0xFF
        if self.running:
            self._config_interrupt()

    def _features_acceptable(self) -> bool:
        chosen = self.state.driver_features
        known = not chosen & ~self.features and bool(chosen & F_VERSION_1)
        return known and self.device.accept(chosen)

    def _reset_virtio(self) -> None:
        self._stop_all()
        self.device.reset()
        old, new = self.state, self.power_up()
        new.config, new.vectors, new.generation = old.config, old.vectors, old.generation
        with self._isr_lock:
            self.state = new
        self.set_intx(False)

    # -- queues -------------------------------------------------------------------------------

    def _start_all(self) -> None:
        if self.running:
            for index in range(len(self.state.queues)):
                self._start(index)

    def _start(self, index: int) -> None:
        state = self.state.queues[index]
        if not state.enabled or index in self._workers:
            return
        features = self.state.driver_features
        queue = Queue(
            index=index,
            size=state.size,
            desc_table=state.desc_table,
            avail_ring=state.avail_ring,
            used_ring=state.used_ring,
            next_avail=state.next_avail,
            next_used=state.next_used,
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
            packed=bool(features & F_RING_PACKED),
            kick_fd=self.kick_fds[index],
            interrupt=self._interrupt(state.vector),
            on_broken=self.fail,
        )
        try:
            self._workers[index] = self.device.start(features, queue)
        except ValueError:
            # The rings are not in guest memory: the driver's mistake, so the driver is told.
            self.fail()

    def _stop(self, index: int) -> None:
        worker = self._workers.pop(index, None)
        if worker is not None:
            self._note_position(index, worker.stop())

    def _stop_all(self) -> None:
        for index in list(self._workers):
            self._stop(index)

    def _note_position(self, index: int, position: tuple[int, int]) -> None:
        queue = self.state.queues[index]
        queue.next_avail, queue.next_used = position

    def set_queue_vector(self, value: int) -> None:
        """The driver's store to `queue_msix_vector` of the selected queue."""
        index = self.state.queue_select
        self.state.queues[index].vector = self.valid_vector(value)
        if index in self._workers:
            self._stop(index)
            self._start(index)

    def enable_queue(self, value: int) -> None:
        """The driver's store to `queue_enable` of the selected queue; only 1 means anything."""
        queue = self.state.queues[self.state.queue_select]
        if value == 1 and not queue.enabled:
            queue.enabled = True
            queue.start_over(packed=bool(self.state.driver_features & F_RING_PACKED))
            if self.running:
                self._start(self.state.queue_select)

    def reset_queue(self, value: int) -> None:
        """The driver's store to `queue_reset`: done when it returns, so it always reads 0."""
        if value == 1 and self.state.driver_features & F_RING_RESET:
            index = self.state.queue_select
            self._stop(index)
            vector = self.state.queues[index].vector
            self.state.queues[index] = QueueState(self.device.queue_sizes[index], vector)

    def valid_vector(self, value: int) -> int:
        """`value` if there is such a vector, else `NO_VECTOR`."""
        return value if self.msix is not None and value < self.msix.count else NO_VECTOR

    # -- interrupts ---------------------------------------------------------------------------

    def _interrupt(self, vector: int) -> MsiRoute | Callable[[], None] | None:
        msix = self.msix
        if msix is None or not msix.enabled:
            return self._queue_intx
        return msix.routes[vector] if vector < len(msix.routes) else None

    def _config_interrupt(self) -> None:
        msix = self.msix
        if msix is None or not msix.enabled:
            self._raise_isr(ISR_CONFIG)
        elif self.state.config_vector < len(msix.routes):
            msix.routes[self.state.config_vector].signal()

    def _queue_intx(self) -> None:
        self._raise_isr(ISR_QUEUE)

    def _raise_isr(self, bit: int) -> None:
        with self._isr_lock:
            self.state.isr |= bit
        self.set_intx(True)

    def take_isr(self) -> int:
        """Read and clear the ISR status; the interrupt pin goes low."""
        with self._isr_lock:
            isr, self.state.isr = self.state.isr, 0
        self.set_intx(False)
        return isr

    # -- PCI ----------------------------------------------------------------------------------

    def _regions(self) -> list[Region]:
        common = CommonConfig(self)
        regions = [
            Region(0, COMMON_OFFSET, COMMON_BYTES, common, "common"),
            Region(0, ISR_OFFSET, ISR_BYTES, IsrStatus(self), "isr"),
        ]
        if self.device.config():
            size = len(self.device.config())
            regions.append(Region(0, DEVICE_OFFSET, size, DeviceConfig(self), "config"))
        return regions + [
            Region(0, NOTIFY_OFFSET + NOTIFY_STRIDE * index, NOTIFY_STRIDE, fd, "notify")
            for index, fd in enumerate(self.kick_fds)
        ]

    def _add_capabilities(self) -> int:
        notify_bytes = NOTIFY_STRIDE * len(self.kick_fds)
        self._add(CAP_COMMON, COMMON_OFFSET, COMMON_BYTES)
        self._add(CAP_NOTIFY, NOTIFY_OFFSET, notify_bytes, struct.pack("<I", NOTIFY_STRIDE))
        self._add(CAP_ISR, ISR_OFFSET, 1)
        if self.device.config():
            self._add(CAP_DEVICE, DEVICE_OFFSET, len(self.device.config()))
        window_writable = struct.pack("<BBBB2xII4x", 0, 0, 0xFF, 0, 0xFFFF_FFFF, 0xFFFF_FFFF)
        return self._add(CAP_PCI, 0, 0, bytes(4), window_writable)

    def _add(
        self, kind: int, offset: int, length: int, extra: bytes = b"", writable: bytes = b""
    ) -> int:
        size = 2 + CAP_BODY_BYTES + len(extra)
        body = struct.pack("<BBBB2xII", size, kind, 0, 0, offset, length) + extra
        return self.layout.add_capability(VENDOR_CAPABILITY, body, writable)

    def read(self, offset: int, size: int) -> int:
        """A load from configuration space; the access window reads through to the BAR."""
        if self._in_window(offset):
            bar, start, length = self._window()
            value = self.bar_read(bar, start, length) if length in (1, 2, 4) else 0
            behind = offset - self._window_offset - CAP_DATA_OFFSET
            # Whatever the window's width, a load gets as much as it asks for.
            return value >> 8 * behind & ((1 << 8 * size) - 1)
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to configuration space; the access window writes through to the BAR."""
        if self._in_window(offset):
            bar, start, length = self._window()
            if length in (1, 2, 4):
                self.bar_write(bar, start, length, value & ((1 << 8 * length) - 1))
            return
        with self.lock:
            took_msix = self.msix is not None and self.msix.enabled
            super().write(offset, size, value)
            if self.msix is not None and self.msix.enabled != took_msix and self._workers:
                self._stop_all()
                self._start_all()

    def region_write(self, region: Region, offset: int, size: int, value: int) -> None:
        """A store that came through the access window."""
        if isinstance(region.target, int):
            os.eventfd_write(region.target, 1)
        else:
            super().region_write(region, offset, size, value)

    def _in_window(self, offset: int) -> bool:
        return 0 <= offset - self._window_offset - CAP_DATA_OFFSET < 4

    def _window(self) -> tuple[int, int, int]:
        start = self._window_offset
        bar, offset, length = struct.unpack_from("<4xB3xII", self.state.config, start)
        return bar, offset, length

"""The windows of a virtio PCI function's BAR that the interpreter answers.

Common configuration, ISR status and the device-specific space (virtio 1.2, sections 4.1.4.3,
4.1.4.5 and 4.1.4.6). They translate offsets into the transport's verbs and hold nothing.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any, Protocol

from ostler.devices.virtio.device import F_RING_PACKED, VirtioDevice
from ostler.devices.virtio.state import (
    FEATURES_OK,
    NEEDS_RESET,
    QueueState,
    VirtioPciState,
    is_queue_size,
)

COMMON_BYTES = 60
ISR_BYTES = 4


class Transport(Protocol):
    """What the windows ask of `VirtioPci`."""

    state: VirtioPciState
    lock: threading.RLock
    device: VirtioDevice[Any]

    @property
    def features(self) -> int:
        """The feature bits offered to the driver."""

    def valid_vector(self, value: int) -> int:
        """`value` if there is such a vector, else `NO_VECTOR`."""

    def set_status(self, value: int) -> None:
        """The driver's store to `device_status`."""

    def set_queue_vector(self, value: int) -> None:
        """The driver's store to `queue_msix_vector` of the selected queue."""

    def enable_queue(self, value: int) -> None:
        """The driver's store to `queue_enable` of the selected queue."""

    def reset_queue(self, value: int) -> None:
        """The driver's store to `queue_reset` of the selected queue."""

    def take_isr(self) -> int:
        """Read and clear the ISR status."""


class IsrStatus:
    """The ISR status byte: reading it acknowledges."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> int:
        """Bit 0: a queue, bit 1: the configuration."""
        return self._transport.take_isr() if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignored."""


class DeviceConfig:
    """The device-specific configuration space, under the transport's lock."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> int:
        """A load."""
        with self._transport.lock:
            return self._transport.device.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A store."""
        with self._transport.lock:
            self._transport.device.write(offset, size, value)


class CommonConfig:
    """`struct virtio_pci_common_cfg`."""

    LAYOUT = struct.Struct("<IIIIHHBBHHHHHQQQHH")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def read(self, offset: int, size: int) -> int:
        """A load of any part: reading has no side effects."""
        with self._transport.lock:
            return int.from_bytes(self._image()[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to one register, or to half of a 64-bit one; others are ignored."""
        with self._transport.lock:
            if (store := self._DEVICE_STORES.get((offset, size))) is not None:
                store(self, value)
            elif (queue := self._queue()) is not None:
                self._store_queue(queue, offset, size, value)

    def _image(self) -> bytes:
        transport, state = self._transport, self._transport.state
        queue = self._queue() or QueueState(0)
        return self.LAYOUT.pack(
            state.device_feature_select,
            _half(transport.features, state.device_feature_select),
            state.driver_feature_select,
            _half(state.driver_features, state.driver_feature_select),
            state.config_vector,
            len(state.queues),
            state.status | NEEDS_RESET * state.needs_reset,
            state.generation,
            state.queue_select,
            queue.size,
            queue.vector,
            queue.enabled,
            state.queue_select if queue.size else 0,
            queue.desc_table,
            queue.avail_ring,
            queue.used_ring,
            0,
            0,
        )

    def _queue(self) -> QueueState | None:
        state = self._transport.state
        select = state.queue_select
        return state.queues[select] if select < len(state.queues) else None

    def _set_device_feature_select(self, value: int) -> None:
        self._transport.state.device_feature_select = value

    def _set_driver_feature_select(self, value: int) -> None:
        self._transport.state.driver_feature_select = value

    def _set_driver_feature(self, value: int) -> None:
        state = self._transport.state
        if state.driver_feature_select < 2 and not state.status & FEATURES_OK:
            shift = 32 * state.driver_feature_select
            kept = state.driver_features & ~(0xFFFF_FFFF << shift)
            state.driver_features = kept | value << shift

    def _set_config_vector(self, value: int) -> None:
        self._transport.state.config_vector = self._transport.valid_vector(value)

    def _set_status(self, value: int) -> None:
        self._transport.set_status(value)

    def _set_queue_select(self, value: int) -> None:
        self._transport.state.queue_select = value

    _DEVICE_STORES: dict[tuple[int, int], Callable[[CommonConfig, int], None]] = {  # noqa: RUF012
        (0, 4): _set_device_feature_select,
        (8, 4): _set_driver_feature_select,
        (12, 4): _set_driver_feature,
        (16, 2): _set_config_vector,
        (20, 1): _set_status,
        (22, 2): _set_queue_select,
    }

    def _store_queue(self, queue: QueueState, offset: int, size: int, value: int) -> None:
        match offset, size:
            case 26, 2:
                self._transport.set_queue_vector(value)
            case 28, 2:
                self._transport.enable_queue(value)
            case 58, 2:
                self._transport.reset_queue(value)
            case 24, 2:
                self._set_queue_size(queue, value)
            case _ if not queue.enabled:
                _store_ring_address(queue, offset, size, value)

    def _set_queue_size(self, queue: QueueState, value: int) -> None:
        limit = self._transport.device.queue_sizes[self._transport.state.queue_select]
        packed = bool(self._transport.state.driver_features & F_RING_PACKED)
        if is_queue_size(value, packed) and value <= limit and not queue.enabled:
            queue.size = value


def _store_ring_address(queue: QueueState, offset: int, size: int, value: int) -> None:
    if 32 <= offset < 40:
        queue.desc_table = _merge(queue.desc_table, offset - 32, size, value)
    elif 40 <= offset < 48:
        queue.avail_ring = _merge(queue.avail_ring, offset - 40, size, value)
    elif 48 <= offset < 56:
        queue.used_ring = _merge(queue.used_ring, offset - 48, size, value)


def _half(features: int, select: int) -> int:
    return features >> 32 * select & 0xFFFF_FFFF if select < 2 else 0


def _merge(old: int, offset: int, size: int, value: int) -> int:
    if size not in (4, 8) or offset % size:
        return old
    mask = (1 << 8 * size) - 1 << 8 * offset
    return old & ~mask | value << 8 * offset & mask

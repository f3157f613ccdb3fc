"""virtio-blk (virtio 1.2, section 5.2): a disk.

This file is the configuration space and the features; requests are read from the ring and
executed by the engine's workers. The write cache starts on, as on every modern disk: a guest that
does not flush has not asked for its data to be kept.

Not modelled: zoned storage, lifetime, secure erase, geometry other than the one computed from the
size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.errors import ConfigError
from ostler.state import State

SECTOR_BYTES = 512
SERIAL_BYTES = 20

F_SEG_MAX = 1 << 2
F_GEOMETRY = 1 << 4
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_MQ = 1 << 12
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

QUEUE_SIZE = 256
# Two descriptors of a request are its header and its status.
SEG_MAX = QUEUE_SIZE - 2
# What the worker accepts in one discard or write-zeroes request.
MAX_RANGE_SECTORS = 1 << 22
MAX_RANGES = 16

WRITEBACK_OFFSET = 32
HEADS, SECTORS_PER_TRACK = 16, 63


class Disk(Protocol):
    """An open disk image."""

    @property
    def disk(self) -> object:
        """Its data path, which the workers take."""

    @property
    def size_bytes(self) -> int:
        """Whole sectors."""

    @property
    def readonly(self) -> bool:
        """The guest may not write."""

    @property
    def block_bytes(self) -> int:
        """What is best written at once."""


@dataclass(slots=True)
class BlkState(State):
    """What the driver can change in the configuration space."""

    writeback: bool = True


class VirtioBlk(VirtioDevice[BlkState]):
    """A disk backed by `disk`; `serial` is what the guest reads as its identity (20 bytes).

    With `discard`, what the guest gives up is given back to the host. Without `cache`, a write is
    answered when it is on stable storage, and the guest is offered nothing to flush.
    `limits`: see `limit`.
    """

    name = "virtio-blk"
    State = BlkState
    device_id = 2
    pci_class = 0x010000

    def __init__(
        self,
        disk: Disk,
        workers: Workers,
        *,
        serial: str = "",
        queues: int = 1,
        discard: bool = True,
        cache: bool = True,
        limits: tuple[int, int] = (0, 0),
    ) -> None:
        if not serial.isascii() or len(serial) > SERIAL_BYTES:
            raise ConfigError(f"disk serial {serial!r}: at most {SERIAL_BYTES} ASCII characters")
        self.state = BlkState()
        self.disk = disk
        self.queue_sizes = (QUEUE_SIZE,) * queues
        self.features = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_TOPOLOGY
        self.features |= F_FLUSH | F_CONFIG_WCE if cache else 0
        self.features |= F_RO if disk.readonly else F_WRITE_ZEROES
        self.features |= F_DISCARD if discard and not disk.readonly else 0
        self.features |= F_MQ if queues > 1 else 0
        self._backend = workers.disk(
            disk.disk, disk.readonly, serial.encode().ljust(SERIAL_BYTES, b"\0")
        )
        self.limit(*limits)

    def limit(self, bytes_per_second: int, requests_per_second: int) -> None:
        """At most so many bytes and requests a second from now on; 0 is no limit.

        What a guest does not use of a second it may use in the next. A request is never cut.
        """
        self._backend.limit(bytes_per_second, requests_per_second)

    def config(self) -> bytes:
        """`struct virtio_blk_config`, up to the write-zeroes fields."""
        capacity = self.disk.size_bytes // SECTOR_BYTES
        cylinders = min(capacity // (HEADS * SECTORS_PER_TRACK), 0xFFFF)
        limits = (MAX_RANGE_SECTORS, MAX_RANGES)
        return struct.pack(
            "<QIIHBBIBBHIBxHIIIIIB3x",
            capacity,
            0,
            SEG_MAX,
            *(cylinders, HEADS, SECTORS_PER_TRACK),
            SECTOR_BYTES,
            *(_log2(self.disk.block_bytes // SECTOR_BYTES), 0, 1, 0),
            self.state.writeback,
            len(self.queue_sizes),
            *limits,
            self.disk.block_bytes // SECTOR_BYTES,
            *limits,
            1,
        )

    def write(self, offset: int, size: int, value: int) -> None:
        """The one writable field: the cache mode."""
        if offset == WRITEBACK_OFFSET and size == 1:
            self.replace(BlkState(writeback=bool(value & 1)))

    def accept(self, features: int) -> bool:
        """A cache that can be switched needs the flush command."""
        return not features & F_CONFIG_WCE or bool(features & F_FLUSH)

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve one request queue. A driver that cannot flush gets a disk without a cache."""
        self._backend.writeback = self.state.writeback and bool(features & F_FLUSH)
        return self._backend.serve(queue)

    def replace(self, state: BlkState) -> None:
        """Take `state`; the workers follow its cache mode."""
        self.state = state
        self._backend.writeback = state.writeback


def _log2(number: int) -> int:
    return number.bit_length() - 1

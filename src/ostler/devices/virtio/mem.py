"""virtio-mem (virtio 1.2, section 5.15): memory that comes and goes while the guest runs.

The device has a region of guest physical memory, of which nothing is there at first. The host asks
for an amount, and the driver plugs and unplugs blocks of it until that is met. Memory is mapped by
chunks, those with a plugged block; what is unplugged goes back to the host at once.

Not modelled: NUMA nodes. In a chunk that has plugged blocks, unplugged ones read as zeros and can
be written, which the specification leaves open.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.errors import HostError, StateError
from ostler.state import State

QUEUE_SIZE = 128
BLOCK_BYTES = 2 << 20
CHUNK_BYTES = 128 << 20
MAX_BYTES = 1 << 40

PLUG, UNPLUG, UNPLUG_ALL, STATE = range(4)
ACK, NACK, BUSY, ERROR = range(4)
ALL_PLUGGED, ALL_UNPLUGGED, MIXED = range(3)
REQUEST = struct.Struct("<H6xQH6x")
RESPONSE = struct.Struct("<H6xH")


class HotMemory(Protocol):
    """Where chunks of the region are mapped; addresses are guest physical."""

    def map(self, chunk: int, gpa: int, size: int) -> None:
        """Put zeroed memory there; `HostError` when the host has none."""

    def unmap(self, chunk: int) -> None:
        """Take it away."""

    def discard(self, gpa: int, size: int) -> None:
        """Give the host back what is there; it reads as zeros."""


@dataclass(slots=True)
class MemState(State):
    """What the host has asked for, and a bit for each plugged block, lowest address first."""

    requested_bytes: int = 0
    plugged: bytes = b""

    def validate(self) -> None:
        """Raise `StateError` for what no device has."""
        if not 0 <= self.requested_bytes <= MAX_BYTES or len(self.plugged) > MAX_BYTES >> 21:
            raise StateError("virtio-mem: a size out of range")


class VirtioMem(VirtioDevice[MemState]):
    """A region of `size_bytes` from `gpa` on, both multiples of `CHUNK_BYTES`."""

    name = "virtio-mem"
    State = MemState
    device_id = 24
    pci_class = 0x00FF00
    queue_sizes = (QUEUE_SIZE,)

    def __init__(self, workers: Workers, memory: HotMemory, gpa: int, size_bytes: int) -> None:
        self.gpa, self.size_bytes = gpa, size_bytes
        self._workers, self._memory = workers, memory
        self._lock = threading.Lock()
        self._blocks = bytearray(size_bytes // BLOCK_BYTES)
        self._mapped: set[int] = set()
        self.state = MemState()

    # -- the host's side ----------------------------------------------------------------------

    @property
    def requested_bytes(self) -> int:
        """What the driver is asked to have plugged."""
        return self.state.requested_bytes

    def request(self, size_bytes: int) -> None:
        """Ask the driver to have `size_bytes` plugged, rounded down to blocks."""
        self.state.requested_bytes = size_bytes // BLOCK_BYTES * BLOCK_BYTES
        self.announce_config()

    @property
    def plugged_bytes(self) -> int:
        """What the driver has plugged."""
        return self._blocks.count(1) * BLOCK_BYTES

    # -- the driver's side --------------------------------------------------------------------

    def config(self) -> bytes:
        """`struct virtio_mem_config`: all of the region is usable."""
        sizes = (self.size_bytes, self.size_bytes, self.plugged_bytes, self.requested_bytes)
        return struct.pack("<QH6x5Q", BLOCK_BYTES, 0, self.gpa, *sizes)

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve the queue of requests, which are rare."""
        return self._workers.calls(queue, self.answer)

    def answer(self, request: bytes, room: int) -> bytes:
        """Do what the driver asks for (section 5.15.6); on the worker's thread."""
        if len(request) < REQUEST.size or room < RESPONSE.size:
            return RESPONSE.pack(ERROR, 0)[:room]
        kind, gpa, count = REQUEST.unpack_from(request)
        with self._lock:
            if kind == UNPLUG_ALL:
                self._change(0, len(self._blocks), 0)
                return RESPONSE.pack(ACK, 0)
            first, odd = divmod(gpa - self.gpa, BLOCK_BYTES)
            inside = first >= 0 and count and first + count <= len(self._blocks)
            act = self._acts.get(kind)
            if act is None or odd or not inside:
                return RESPONSE.pack(ERROR, 0)
            return RESPONSE.pack(*act(self, first, count))

    def _plug(self, first: int, count: int) -> tuple[int, int]:
        wanted = self.plugged_bytes + count * BLOCK_BYTES
        if any(self._blocks[first : first + count]):
            return ERROR, 0
        if wanted > self.requested_bytes:
            return NACK, 0
        try:
            self._change(first, count, 1)
        except HostError:
            return BUSY, 0
        return ACK, 0

    def _unplug(self, first: int, count: int) -> tuple[int, int]:
        if not all(self._blocks[first : first + count]):
            return ERROR, 0
        self._change(first, count, 0)
        return ACK, 0

    def _tell(self, first: int, count: int) -> tuple[int, int]:
        plugged = self._blocks.count(1, first, first + count)
        return ACK, {0: ALL_UNPLUGGED, count: ALL_PLUGGED}.get(plugged, MIXED)

    _acts: ClassVar[dict[int, Callable[[VirtioMem, int, int], tuple[int, int]]]] = {
        PLUG: _plug,
        UNPLUG: _unplug,
        STATE: _tell,
    }

    def _change(self, first: int, count: int, value: int) -> None:
        """Plug (1) or unplug (0) blocks; `HostError`, and nothing is plugged, without memory."""
        before = bytes(self._blocks)
        self._blocks[first : first + count] = bytes((value,)) * count
        try:
            self._map_chunks()
        except HostError:
            self._blocks[:] = before
            self._map_chunks()
            raise
        if not value:
            self._discard(first, first + count)

    def _map_chunks(self) -> None:
        """Map the chunks that have a plugged block, and no others."""
        step = CHUNK_BYTES // BLOCK_BYTES
        for chunk in range(len(self._blocks) // step):
            wanted = 1 in self._blocks[chunk * step : (chunk + 1) * step]
            if wanted and chunk not in self._mapped:
                self._memory.map(chunk, self.gpa + chunk * CHUNK_BYTES, CHUNK_BYTES)
                self._mapped.add(chunk)
            elif not wanted and chunk in self._mapped:
                self._mapped.remove(chunk)
                self._memory.unmap(chunk)

    def _discard(self, first: int, end: int) -> None:
        size = (end - first) * BLOCK_BYTES
        self._memory.discard(self.gpa + first * BLOCK_BYTES, size)

    # -- state --------------------------------------------------------------------------------

    def reset(self) -> None:
        """Nothing changes: memory stays when the driver comes anew (section 5.15.5.2)."""

    def save(self) -> dict[str, Any]:
        """The state, with a bit for each block."""
        with self._lock:
            bits = sum(block << number for number, block in enumerate(self._blocks))
            self.state.plugged = bits.to_bytes((len(self._blocks) + 7) // 8, "little")
            return super().save()

    def replace(self, state: MemState) -> None:
        """Take `state`; chunks follow. `StateError` when it is of another region."""
        bits = int.from_bytes(state.plugged, "little")
        if bits >> len(self._blocks) or state.requested_bytes > self.size_bytes:
            raise StateError(f"{self.name}: saved with more memory than {self.size_bytes} bytes")
        with self._lock:
            self._blocks[:] = (bits >> number & 1 for number in range(len(self._blocks)))
            self._map_chunks()
        self.state = state

    def close(self) -> None:
        """Unmap what is mapped."""
        with self._lock:
            self._blocks[:] = bytes(len(self._blocks))
            self._map_chunks()

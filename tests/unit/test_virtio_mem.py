"""virtio-mem (virtio 1.2, section 5.15): what may be plugged, is mapped, and saved."""

from __future__ import annotations

import struct

import pytest

from ostler.config import VirtioMemConfig, parse_device
from ostler.devices.virtio import mem
from ostler.devices.virtio.mem import BLOCK_BYTES, CHUNK_BYTES, VirtioMem
from ostler.errors import ConfigError, HostError, StateError
from ostler.testing.pci import FakeWorkers

GPA, SIZE = 4 << 30, 2 * CHUNK_BYTES


class FakeHotMemory:
    """Chunks by number, and what was given back; with `full`, there are no more."""

    def __init__(self) -> None:
        self.chunks: dict[int, tuple[int, int]] = {}
        self.discarded: list[tuple[int, int]] = []
        self.full = False

    def map(self, chunk: int, gpa: int, size: int) -> None:
        if self.full:
            raise HostError("no memory")
        self.chunks[chunk] = (gpa, size)

    def unmap(self, chunk: int) -> None:
        del self.chunks[chunk]

    def discard(self, gpa: int, size: int) -> None:
        self.discarded.append((gpa, size))


@pytest.fixture
def memory() -> FakeHotMemory:
    return FakeHotMemory()


@pytest.fixture
def device(memory: FakeHotMemory) -> VirtioMem:
    return VirtioMem(FakeWorkers(), memory, GPA, SIZE)


def ask(device: VirtioMem, kind: int, block: int = 0, count: int = 0) -> tuple[int, int]:
    request = struct.pack("<H6xQH6x", kind, GPA + block * BLOCK_BYTES, count)
    answer, state = struct.unpack("<H6xH", device.answer(request, 10))
    return answer, state


def test_driver_plugs_up_to_what_is_requested_and_chunks_are_mapped(
    device: VirtioMem, memory: FakeHotMemory
) -> None:
    assert ask(device, mem.PLUG, 0, 1) == (mem.NACK, 0)
    device.request(3 * BLOCK_BYTES + 5)
    assert ask(device, mem.PLUG, 63, 2) == (mem.ACK, 0)
    assert memory.chunks == {0: (GPA, CHUNK_BYTES), 1: (GPA + CHUNK_BYTES, CHUNK_BYTES)}
    assert ask(device, mem.PLUG, 0, 2) == (mem.NACK, 0)
    assert ask(device, mem.PLUG, 0, 1) == (mem.ACK, 0)
    sizes = (BLOCK_BYTES, 0, GPA, SIZE, SIZE, 3 * BLOCK_BYTES, 3 * BLOCK_BYTES)
    assert struct.unpack("<QH6x5Q", device.config()) == sizes


def test_driver_unplugs_and_memory_goes_back(device: VirtioMem, memory: FakeHotMemory) -> None:
    device.request(SIZE)
    ask(device, mem.PLUG, 0, 128)
    assert ask(device, mem.UNPLUG, 64, 63) == (mem.ACK, 0)
    assert memory.discarded == [(GPA + CHUNK_BYTES, 63 * BLOCK_BYTES)]
    assert set(memory.chunks) == {0, 1}
    assert ask(device, mem.STATE, 60, 8) == (mem.ACK, mem.MIXED)
    assert ask(device, mem.STATE, 64, 63) == (mem.ACK, mem.ALL_UNPLUGGED)
    assert ask(device, mem.STATE, 0, 64) == (mem.ACK, mem.ALL_PLUGGED)
    ask(device, mem.UNPLUG, 127, 1)
    assert set(memory.chunks) == {0}
    assert ask(device, mem.UNPLUG_ALL) == (mem.ACK, 0)
    assert (memory.chunks, device.plugged_bytes) == ({}, 0)


@pytest.mark.parametrize(
    ("kind", "block", "count"),
    [(mem.PLUG, 127, 2), (mem.PLUG, -1, 1), (mem.PLUG, 0, 0), (mem.UNPLUG, 0, 1), (9, 0, 1)],
)
def test_request_that_cannot_be_is_an_error(
    device: VirtioMem, kind: int, block: int, count: int
) -> None:
    device.request(SIZE)
    assert ask(device, kind, block, count)[0] == mem.ERROR
    assert device.plugged_bytes == 0


def test_requests_cut_short_or_askew_are_errors(device: VirtioMem) -> None:
    device.request(SIZE)
    assert device.answer(b"\0" * 23, 10)[0] == mem.ERROR
    assert device.answer(b"\0" * 24, 3) == RESPONSE_CUT
    askew = struct.pack("<H6xQH6x", mem.PLUG, GPA + 4096, 1)
    assert device.answer(askew, 10)[0] == mem.ERROR
    ask(device, mem.PLUG, 3, 1)
    assert ask(device, mem.PLUG, 2, 2)[0] == mem.ERROR, "a block of it is there already"


RESPONSE_CUT = struct.pack("<H6xH", mem.ERROR, 0)[:3]


def test_host_without_memory_is_busy_and_nothing_is_plugged(
    device: VirtioMem, memory: FakeHotMemory
) -> None:
    device.request(SIZE)
    memory.full = True
    assert ask(device, mem.PLUG, 0, 4) == (mem.BUSY, 0)
    assert (device.plugged_bytes, memory.chunks) == (0, {})


def test_memory_stays_over_a_reset_and_is_mapped_again_after_loading(
    device: VirtioMem, memory: FakeHotMemory
) -> None:
    device.request(4 * BLOCK_BYTES)
    ask(device, mem.PLUG, 70, 4)
    device.reset()
    assert device.plugged_bytes == device.requested_bytes == 4 * BLOCK_BYTES
    saved = device.save()
    other_memory = FakeHotMemory()
    other = VirtioMem(FakeWorkers(), other_memory, GPA, SIZE)
    other.load(saved)
    assert set(other_memory.chunks) == {1}
    assert other.save() == saved
    with pytest.raises(StateError, match="more memory"):
        VirtioMem(FakeWorkers(), FakeHotMemory(), GPA, CHUNK_BYTES).load(
            {**saved, "requested_bytes": SIZE}
        )
    other.close()
    assert other_memory.chunks == {}


def test_config_of_the_region() -> None:
    config = parse_device("virtio-mem,size=1G")
    assert isinstance(config, VirtioMemConfig)
    assert config.size_bytes == 1 << 30
    with pytest.raises(ConfigError, match="multiple of 128M"):
        parse_device("virtio-mem,size=100M")
    with pytest.raises(ConfigError, match="is not a size"):
        parse_device("virtio-mem,size=much")

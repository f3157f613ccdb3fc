"""Memory slots as Python sees them."""

from __future__ import annotations

import mmap
import os

import pytest
from engine_guest import machine

from ostler.engine import Memory
from ostler.errors import ConfigError

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")


@pytest.fixture
def memory() -> Memory:
    return machine().memory


def test_memory_written_reads_back_and_new_memory_is_zero(memory: Memory) -> None:
    memory.add_slot(0, gpa=0x10000, size=0x2000)
    memory.write(0x10FFE, b"over the page")
    assert memory.read(0x10FFE, 13) == b"over the page"
    assert memory.read(0x10000, 4) == bytes(4)


def test_memory_accepts_bytearray_and_empty(memory: Memory) -> None:
    memory.add_slot(0, gpa=0, size=0x1000)
    memory.write(0, bytearray(b"x"))
    memory.write(0, b"")
    assert memory.read(0, 1) == b"x"
    assert memory.read(0, 0) == b""


@pytest.mark.parametrize(("gpa", "length"), [(0x2000, 1), (0xFFF, 2), (1 << 60, 1), (2**64 - 1, 2)])
def test_memory_where_no_slot_is_raises_index_error(memory: Memory, gpa: int, length: int) -> None:
    memory.add_slot(0, gpa=0, size=0x1000)
    with pytest.raises(IndexError, match=f"{gpa:#x}"):
        memory.read(gpa, length)
    with pytest.raises(IndexError, match=f"{gpa:#x}"):
        memory.write(gpa, bytes(length))


def test_memory_negative_address_is_an_overflow_error(memory: Memory) -> None:
    with pytest.raises(OverflowError):
        memory.read(-1, 1)


@pytest.mark.parametrize(("gpa", "size"), [(1, 0x1000), (0, 1), (0, 0), (1 << 52, 0x1000)])
def test_slot_misaligned_or_out_of_range_is_refused(memory: Memory, gpa: int, size: int) -> None:
    with pytest.raises(ConfigError, match="slot 7"):
        memory.add_slot(7, gpa, size)


def test_slot_overlapping_another_is_refused_and_replacing_itself_is_not(memory: Memory) -> None:
    memory.add_slot(0, gpa=0, size=0x2000)
    with pytest.raises(ConfigError, match="slot 1 overlaps"):
        memory.add_slot(1, gpa=0x1000, size=0x1000)
    memory.write(0, b"old")
    memory.add_slot(0, gpa=0, size=0x1000)
    assert memory.read(0, 3) == bytes(3)


def test_slot_removed_is_gone_and_removing_it_again_is_refused(memory: Memory) -> None:
    memory.add_slot(0, gpa=0, size=0x1000)
    memory.remove_slot(0)
    with pytest.raises(IndexError):
        memory.read(0, 1)
    with pytest.raises(ConfigError, match="slot 0 does not exist"):
        memory.remove_slot(0)


def test_slot_of_a_memfd_is_shared_with_whoever_maps_it(memory: Memory) -> None:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 0x3000)
    with mmap.mmap(fd, 0x3000) as shared:
        memory.add_slot(0, gpa=0, size=0x2000, fd=fd, offset=0x1000)
        os.close(fd)
        memory.write(0, b"from the guest")
        assert shared[0x1000:0x100E] == b"from the guest"
        shared[0x1000:0x1004] = b"back"
        assert memory.read(0, 4) == b"back"


def test_slot_of_a_closed_descriptor_is_an_os_error(memory: Memory) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        memory.add_slot(0, gpa=0, size=0x1000, fd=-1)


def test_slot_read_only_is_writable_for_the_host(memory: Memory) -> None:
    memory.add_slot(0, gpa=0, size=0x1000, read_only=True)
    memory.write(0, b"ROM")
    assert memory.read(0, 3) == b"ROM"


def test_dirty_log_names_the_pages_written_since_it_was_read(memory: Memory) -> None:
    memory.add_slot(0, gpa=0x100000, size=0x11000, log_dirty=True)
    memory.write(0x100FFF, b"ab")
    memory.write(0x110000, b"c")
    assert memory.dirty_log(0) == bytes([0b11, 0, 1, 0, 0, 0, 0, 0])
    assert memory.dirty_log(0) == bytes(8)


def test_dirty_log_switched_off_records_nothing(memory: Memory) -> None:
    memory.add_slot(0, gpa=0, size=0x1000)
    memory.write(0, b"x")
    memory.set_dirty_log(0, True)
    memory.set_dirty_log(0, False)
    memory.write(0, b"x")
    assert memory.dirty_log(0) == bytes(8)
    with pytest.raises(ConfigError, match="slot 5"):
        memory.set_dirty_log(5, True)


def test_slot_of_two_tebibytes_costs_nothing(memory: Memory) -> None:
    sizes = [row for row in machine().supported_cpuid() if row.function == 0x8000_0008]
    address_bits = sizes[0].eax & 0xFF
    if address_bits < 42:
        pytest.skip(f"this host's CPU addresses {address_bits} bits of memory only")
    memory.add_slot(0, gpa=0, size=2 << 40)
    memory.write((2 << 40) - 1, b"x")
    assert memory.read((2 << 40) - 1, 1) == b"x"

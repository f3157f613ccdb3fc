"""Stock programs of Debian become plans: two kernels, memtest86+ and a multiboot game."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from firmware_images import MEMORY_MAP, MIB

from guests import fetch
from ostler.firmware import lz4_blocks
from ostler.firmware.boot import load_kernel
from ostler.firmware.plan import Buffer, Load
from ostler.machine.boot import unpack_streams, write_boot
from ostler.machine.paper import PaperMemory

pytestmark = pytest.mark.slow

ENTRY_OF_DEBIAN_KERNELS = 16 * MIB


@pytest.mark.parametrize("flavour", ["cloud", "full"])
def test_debian_kernel_is_unpacked_and_entered_in_64_bit_mode(flavour: fetch.Flavour) -> None:
    image = fetch.kernel(flavour).image
    plan = load_kernel(image, memory_map=MEMORY_MAP, cmdline="console=ttyS0", initrd=b"initrd")
    assert (plan.protocol, plan.regs.rip) == ("linux64", ENTRY_OF_DEBIAN_KERNELS)
    segments = [load for load in plan.loads if load.what == "a kernel segment"]
    assert len(segments) >= 3
    assert sum(len(load.data) for load in segments) > 40 * MIB


def test_debian_cloud_kernel_is_unpacked_in_under_150_ms_of_cpu_time() -> None:
    image = fetch.kernel("cloud").image
    best = min(_cpu_seconds_to_load(image.read_bytes()) for _ in range(5))
    assert best < 0.150


class CountingMemory:
    """Memory that notes what is written to it."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, int]] = []

    def write(self, gpa: int, data: Buffer) -> None:
        self.pieces.append((gpa, len(data)))

    def covers(self, load: Load) -> bool:
        inside = [size for gpa, size in self.pieces if load.gpa <= gpa < load.end]
        return sum(inside) == load.end - load.gpa


def test_debian_cloud_kernel_goes_to_memory_once_and_never_lies_in_memory_twice() -> None:
    plan = load_kernel(fetch.kernel("cloud").image, memory_map=MEMORY_MAP)
    memory = CountingMemory()
    tracemalloc.start()
    try:
        write_boot(plan, b"tables", memory)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(memory.covers(load) for load in plan.loads)
    blocks = max(size for _, size in memory.pieces) // lz4_blocks.BLOCK_BYTES
    assert blocks <= 1, "a piece larger than what is unpacked at once"
    assert peak_bytes < (lz4_blocks.MAX_THREADS + 1) * lz4_blocks.BLOCK_BYTES


def _cpu_seconds_to_load(image: bytes) -> float:
    started = time.process_time()
    unpack_streams(load_kernel(image, memory_map=MEMORY_MAP), PaperMemory())
    return time.process_time() - started


def test_memtest_is_entered_at_its_64_bit_entry() -> None:
    plan = load_kernel(fetch.memtest(), memory_map=MEMORY_MAP, cmdline="console=ttyS0,115200")
    assert (plan.protocol, plan.regs.rip) == ("linux64", MIB + 0x200)


def test_invaders_is_a_multiboot_kernel_loaded_by_address_fields() -> None:
    plan = load_kernel(fetch.invaders(), memory_map=MEMORY_MAP)
    assert (plan.protocol, plan.regs.rip) == ("multiboot", 0x10_0024)
    (kernel,) = (load for load in plan.loads if load.what == "the kernel")
    assert (kernel.gpa, len(kernel.data), kernel.zero_bytes) == (MIB, 6616, 16760)

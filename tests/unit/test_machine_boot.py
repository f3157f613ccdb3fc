"""Writing a boot plan: streams are scattered to their places, everything else as it lies."""

from __future__ import annotations

import random
import struct
from itertools import pairwise
from pathlib import Path

import lz4.block
import pytest
from firmware_images import KERNEL_GPA, MEMORY_MAP, MIB, bzimage, elf64

from ostler.config import MachineConfig
from ostler.errors import KernelError
from ostler.firmware.acpi.tables import RSDP_GPA
from ostler.firmware.boot import load_kernel
from ostler.firmware.entry import long_mode
from ostler.firmware.plan import BootPlan as Plan
from ostler.firmware.plan import Load, Part, Sink
from ostler.machine.boot import doubt_initrd, write_boot
from ostler.machine.describe import describe
from ostler.registers import Regs
from ostler.testing import FakeMemory

NOISE = random.Random(1).randbytes(3 * MIB)


class Shuffled:
    """A stream whose pieces come in disorder."""

    def __init__(self, data: bytes, seed: int) -> None:
        self.data, self.random = data, random.Random(seed)
        self.times = 0

    def unpack(self, sink: Sink) -> None:
        self.times += 1
        cuts = sorted({0, len(self.data), *self.random.sample(range(len(self.data)), 9)})
        pieces = list(pairwise(cuts))
        self.random.shuffle(pieces)
        for start, end in pieces:
            sink(start, self.data[start:end])


def plan_of(*loads: Load) -> Plan:
    _, sregs, _ = long_mode(0, 0)
    return Plan("linux64", loads, Regs(rip=0), sregs)


@pytest.mark.parametrize("seed", range(20))
def test_write_boot_of_a_stream_puts_each_part_at_its_place(seed: int) -> None:
    stream = Shuffled(NOISE[:100_000], seed)
    loads = (
        Load(0x1000, Part(stream, 10, 40_000), "a", zero_bytes=100),
        Load(0x20000, Part(stream, 40_010, 0), "nothing"),
        Load(0x30000, Part(stream, 60_000, 40_000), "b"),
    )
    memory = FakeMemory(MIB)
    memory.data[:] = b"x" * MIB
    write_boot(plan_of(*loads), b"tables", memory)
    assert memory.read(0x1000, 40_100) == NOISE[10:40_010] + bytes(100)
    assert memory.read(0x30000, 40_000) == NOISE[60_000:100_000]
    assert memory.read(RSDP_GPA, 6) == b"tables"
    assert memory.data.count(b"x") > MIB // 2, "nothing else is written"
    assert stream.times == 1, "one pass for all parts"


def lz4_kernel(*, damaged: bool = False) -> bytes:
    """A bzImage whose vmlinux has segments across several blocks, in lz4."""
    vmlinux = elf64([(KERNEL_GPA, NOISE * 5, 15 * MIB), (KERNEL_GPA + 16 * MIB, b"data", 4096)])
    packed = b"\x02\x21\x4c\x18"
    for at in range(0, len(vmlinux), 8 * MIB):
        block = bytearray(lz4.block.compress(vmlinux[at : at + 8 * MIB], store_size=False))
        if damaged and at:
            block[:3] = bytes(3)  # no literals, then a match at distance 0
        packed += struct.pack("<I", len(block)) + block
    return bzimage(packed + struct.pack("<I", len(vmlinux)))


def test_write_boot_of_an_lz4_kernel_is_the_unpacked_kernel() -> None:
    memory = FakeMemory(64 * MIB)
    write_boot(load_kernel(lz4_kernel(), memory_map=MEMORY_MAP), b"", memory)
    assert memory.read(KERNEL_GPA, 15 * MIB) == NOISE * 5
    assert memory.read(KERNEL_GPA + 16 * MIB, 4096) == b"data".ljust(4096, b"\0")


def test_damage_behind_the_headers_is_a_kernel_error_that_names_the_file(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(lz4_kernel(damaged=True))
    plan = load_kernel(kernel, memory_map=MEMORY_MAP)
    message = rf"^kernel '{kernel}' has a damaged lz4 payload \(.+\); fetch it again$"
    with pytest.raises(KernelError, match=message):
        write_boot(plan, b"", FakeMemory(64 * MIB))
    with pytest.raises(KernelError, match=message):
        describe(MachineConfig(kernel=kernel), "soft")


ARCHIVES = {
    "newc": b"070701", "padded": bytes(512) + b"070702", "gzip": b"\x1f\x8b\x08", "bzip2": b"BZh9",
    "xz": b"\xfd7zXZ\0", "lzma": b"\x5d\0\0\x80", "lzo": b"\x89LZO\0\r\n\x1a\n",
    "lz4": b"\x02\x21L\x18", "zstd": b"\x28\xb5\x2f\xfd", "squashfs": b"hsqs",
    "ext2": bytes(1080) + b"\x53\xef",
}  # fmt: skip


@pytest.mark.parametrize("begin", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_initrd_that_linux_can_read_is_not_doubted(tmp_path: Path, begin: bytes) -> None:
    assert doubt_initrd(linux_with(tmp_path, begin + bytes(4096))) == ""


@pytest.mark.parametrize("content", [b"hello", b"\x7fELF", b"PK\x03\x04", bytes(8192)])
def test_initrd_that_linux_cannot_read_is_doubted_in_one_line(
    tmp_path: Path, content: bytes
) -> None:
    config = linux_with(tmp_path, content)
    assert doubt_initrd(config) == (
        f"initrd {str(config.initrd)!r} is no cpio archive, plain or packed, so Linux will find no"
        " /init in it; `ostler image initramfs` makes one"
    )
    # What another kernel takes is its own affair.
    config.kernel.write_bytes(b"\x7fELF")
    assert doubt_initrd(config) == ""


def linux_with(folder: Path, content: bytes) -> MachineConfig:
    """A machine with a bzImage, and an initrd of that content."""
    kernel, initrd = folder / "vmlinuz", folder / "initrd"
    kernel.write_bytes(bzimage())
    initrd.write_bytes(content)
    return MachineConfig(kernel=kernel, initrd=initrd)

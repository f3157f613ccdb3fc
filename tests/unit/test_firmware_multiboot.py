"""Multiboot 1: header search, both ways of loading, the information structure."""

from __future__ import annotations

import random
import struct

import pytest
from firmware_images import MEMORY_MAP, MIB, RAM_BYTES, elf32, elf64, multiboot_header
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.errors import KernelError
from ostler.firmware import multiboot
from ostler.firmware.boot import load_kernel
from ostler.firmware.plan import BootPlan, Module

ELF = elf32(multiboot_header(3) + b"\xf4" * 64)
# Header 64 bytes into the file, loaded from byte 32 on: 96 bytes of text and data, 1000 of bss.
ADDRESSES = (MIB + 32, MIB, MIB + 96, MIB + 1096, MIB + 70)
FLAT = bytes(64) + multiboot_header(multiboot.FLAG_ADDRESSES, *ADDRESSES) + bytes(100)


def information(plan: BootPlan) -> dict[str, int]:
    names = ("flags", "mem_lower", "mem_upper", "boot_device", "cmdline", "mods_count", "mods_addr")
    info = memory(plan, plan.regs.rbx, 116)
    later = zip(("mmap_length", "mmap_addr"), struct.unpack_from("<II", info, 44), strict=True)
    (name,) = struct.unpack_from("<I", info, 64)
    return (
        dict(zip(names, struct.unpack_from("<7I", info), strict=True))
        | dict(later)
        | {"name": name}
    )


def memory(plan: BootPlan, gpa: int, length: int) -> bytes:
    """What the plan puts at `gpa`."""
    for load in plan.loads:
        if load.gpa <= gpa < load.gpa + len(load.data):
            return bytes(load.data)[gpa - load.gpa : gpa - load.gpa + length]
    raise AssertionError(f"nothing is loaded at {gpa:#x}")


def text(plan: BootPlan, gpa: int) -> str:
    return memory(plan, gpa, 4096).split(b"\0")[0].decode()


def test_multiboot_elf_is_entered_with_magic_and_information() -> None:
    plan = load_kernel(ELF, memory_map=MEMORY_MAP, cmdline="a b")
    assert (plan.protocol, plan.regs.rax, plan.regs.rip) == ("multiboot", 0x2BADB002, MIB)
    assert (plan.sregs.cr0, plan.sregs.cs.db, plan.regs.rflags) == (0x11, True, 2)
    info = information(plan)
    assert info["flags"] == 0b10_0100_1101
    assert (info["mem_lower"], info["mem_upper"]) == (0x9FC00 >> 10, (RAM_BYTES - MIB) >> 10)
    assert text(plan, info["cmdline"]) == "a b"
    assert text(plan, info["name"]) == "Ostler"


def test_multiboot_memory_map_has_a_row_for_each_range() -> None:
    plan = load_kernel(ELF, memory_map=MEMORY_MAP)
    info = information(plan)
    raw = memory(plan, info["mmap_addr"], info["mmap_length"])
    rows = [struct.unpack_from("<IQQI", raw, at) for at in range(0, len(raw), 24)]
    assert rows == [(20, row.base, row.size, row.kind) for row in MEMORY_MAP]


def test_multiboot_modules_follow_the_kernel_on_pages_with_their_strings() -> None:
    modules = [Module(b"B" * 5000, "two args"), Module(b"C", "")]
    plan = load_kernel(ELF, memory_map=MEMORY_MAP, initrd=b"A" * 10, modules=modules)
    info = information(plan)
    raw = memory(plan, info["mods_addr"], 16 * info["mods_count"])
    rows = [struct.unpack_from("<IIII", raw, at) for at in range(0, len(raw), 16)]
    assert [memory(plan, start, end - start) for start, end, _, _ in rows] == [
        b"A" * 10,
        b"B" * 5000,
        b"C",
    ]
    assert [text(plan, where) for _, _, where, _ in rows] == ["", "two args", ""]
    kernel_end = MIB + len(ELF) + 4096
    assert all(start % 4096 == 0 for start, *_ in rows)
    assert MIB < rows[0][0] <= kernel_end + 4096


def test_multiboot_address_fields_load_the_part_they_name() -> None:
    plan = load_kernel(FLAT, memory_map=MEMORY_MAP)
    (kernel,) = (load for load in plan.loads if load.what == "the kernel")
    assert (kernel.gpa, bytes(kernel.data), kernel.zero_bytes) == (MIB, FLAT[32:128], 1000)
    assert plan.regs.rip == MIB + 70


def test_multiboot_address_fields_of_zero_load_to_the_files_end_without_bss() -> None:
    header = multiboot_header(multiboot.FLAG_ADDRESSES, MIB, MIB, 0, 0, MIB + 40)
    plan = load_kernel(header + b"\xf4" * 9, memory_map=MEMORY_MAP)
    (kernel,) = (load for load in plan.loads if load.what == "the kernel")
    assert (len(kernel.data), kernel.zero_bytes) == (len(header) + 9, 0)


def test_multiboot_elf_of_a_higher_half_kernel_starts_at_the_physical_entry() -> None:
    image = elf32(multiboot_header(0) + bytes(64), entry=0xC010_000C, vaddr_offset=0xC000_0000)
    assert load_kernel(image, memory_map=MEMORY_MAP).regs.rip == MIB + 12


@pytest.mark.parametrize(
    "start",
    [
        bytes(8192) + multiboot_header(0),
        bytes(2) + multiboot_header(0),
        multiboot_header(0)[:8] + b"\1\0\0\0",
        bytes(8180) + multiboot_header(multiboot.FLAG_ADDRESSES, *ADDRESSES),
    ],
    ids=["past 8 KiB", "unaligned", "checksum", "cut by 8 KiB"],
)
def test_multiboot_header_that_is_none_is_not_found(start: bytes) -> None:
    assert multiboot.find_header(memoryview(start)) is None


def test_multiboot_header_after_a_stray_magic_is_found() -> None:
    stray = struct.pack("<I", multiboot.HEADER_MAGIC) + bytes(20)
    header = multiboot.find_header(memoryview(stray + multiboot_header(3)))
    assert header == multiboot.Header(24, 3)


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (multiboot_header(0), "neither addresses nor an ELF file"),
        (elf32(multiboot_header(1 << 3)), "features 0x8"),
        (FLAT[:100], "truncated"),
        (
            multiboot_header(multiboot.FLAG_ADDRESSES, MIB, MIB + 8, 0, 0, MIB),
            "impossible addresses",
        ),
        (elf64([(1 << 33, multiboot_header(0), 99)], entry=1 << 33), "above 4 GiB"),
    ],
)
def test_multiboot_that_cannot_be_loaded_says_why(image: bytes, cause: str) -> None:
    with pytest.raises(KernelError, match=cause):
        load_kernel(image, memory_map=MEMORY_MAP)


def test_multiboot_modules_that_do_not_fit_are_refused() -> None:
    with pytest.raises(KernelError, match=r"a module at .* is not within the guest's RAM"):
        load_kernel(ELF, memory_map=MEMORY_MAP, initrd=bytes(RAM_BYTES))


@given(st.integers(0, 127))
def test_multiboot_truncated_anywhere_is_a_kernel_error(length: int) -> None:
    with pytest.raises(KernelError):
        load_kernel(FLAT[:length], memory_map=MEMORY_MAP)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_multiboot_with_any_addresses_loads_within_ram_or_is_a_kernel_error(seed: int) -> None:
    rng = random.Random(seed)
    fields = [rng.choice([0, 0xFFFF_FFFF, MIB, MIB + rng.randrange(200)]) for _ in range(5)]
    image = bytes(64) + multiboot_header(multiboot.FLAG_ADDRESSES, *fields) + bytes(100)
    try:
        plan = load_kernel(image, memory_map=MEMORY_MAP, initrd=b"module")
    except KernelError:
        return
    assert all(part.end <= RAM_BYTES for part in plan.loads)

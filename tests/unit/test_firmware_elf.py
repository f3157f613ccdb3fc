"""ELF kernels: PVH by note, else by the 64-bit entry point; hostile files."""

from __future__ import annotations

import random
import struct

import pytest
from firmware_images import KERNEL_GPA, MEMORY_MAP, MIB, RAM_BYTES, elf32, elf64, note
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.errors import KernelError
from ostler.firmware import elf
from ostler.firmware.boot import load_kernel
from ostler.firmware.plan import Module

PVH_ENTRY = KERNEL_GPA + 0x20
PVH_NOTE = note(b"Xen\0", 18, struct.pack("<Q", PVH_ENTRY))
PVH = elf64(notes=note(b"GNU\0", 1, bytes(9)) + note(b"Xen\0", 5, b"v") + PVH_NOTE)


def test_elf_with_pvh_note_is_entered_in_protected_mode_with_start_info() -> None:
    plan = load_kernel(PVH, memory_map=MEMORY_MAP, cmdline="quiet", rsdp_gpa=0xE0000)
    assert (plan.protocol, plan.regs.rip) == ("pvh", PVH_ENTRY)
    assert (plan.sregs.cr0, plan.sregs.cr4, plan.sregs.efer) == (0x11, 0, 0)
    loads = {load.gpa: bytes(load.data) for load in plan.loads}
    info = loads[plan.regs.rbx]
    magic, version, flags, modules, _, cmdline, rsdp, rows_gpa, rows, _ = struct.unpack_from(
        "<IIIIQQQQII", info
    )
    assert (magic, version, flags, modules, rsdp) == (0x336EC578, 1, 0, 0, 0xE0000)
    assert loads[cmdline] == b"quiet\0"
    table = [
        struct.unpack_from("<QQII", info, rows_gpa - plan.regs.rbx + 24 * n) for n in range(rows)
    ]
    assert table == [(row.base, row.size, row.kind, 0) for row in MEMORY_MAP]


def test_pvh_modules_lie_in_ram_and_in_the_list_in_order() -> None:
    given_modules = [Module(b"second" * 1000), Module(b"third")]
    plan = load_kernel(PVH, memory_map=MEMORY_MAP, initrd=b"first", modules=given_modules)
    loads = {load.gpa: bytes(load.data) for load in plan.loads}
    info = loads[plan.regs.rbx]
    count, list_gpa = struct.unpack_from("<IQ", info, 12)
    listed = [
        struct.unpack_from("<QQQQ", info, list_gpa - plan.regs.rbx + 32 * n) for n in range(count)
    ]
    assert [loads[row[0]] for row in listed] == [b"first", b"second" * 1000, b"third"]
    assert [row[1] for row in listed] == [5, 6000, 5]


def test_pvh_note_of_four_bytes_is_read_too() -> None:
    image = elf64(notes=note(b"Xen\0", 18, struct.pack("<I", PVH_ENTRY)))
    assert load_kernel(image, memory_map=MEMORY_MAP).regs.rip == PVH_ENTRY


def test_elf64_without_note_is_entered_in_long_mode_with_boot_params() -> None:
    plan = load_kernel(elf64(), memory_map=MEMORY_MAP, initrd=b"initrd")
    assert (plan.protocol, plan.regs.rip) == ("linux64", KERNEL_GPA)
    page = next(bytes(load.data) for load in plan.loads if load.gpa == plan.regs.rsi)
    assert page[0x202:0x206] == b"HdrS"


def test_elf32_without_any_header_is_refused() -> None:
    with pytest.raises(KernelError, match="32-bit ELF file without PVH note or multiboot header"):
        load_kernel(elf32(b"\xf4" * 64), memory_map=MEMORY_MAP)


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (elf64(machine=183), "another CPU"),
        (elf64(kind=1), "object or core file"),
        (elf64(segments=()), "nothing to load"),
        (elf64([(KERNEL_GPA, b"xx", 1)]), "impossible sizes"),
        (elf64([(1 << 52, b"xx", 2)]), "impossible sizes"),
        (elf64([(KERNEL_GPA, b"xx", 1 << 40)]), "not within the guest's RAM"),
        (elf64([(KERNEL_GPA, b"x", 99), (KERNEL_GPA + 50, b"x", 99)]), "overlap"),
        (elf64([(0x6000, b"x", 99)]), "overlap"),
        (elf64([(0xA0000, b"x", 99)]), "not within the guest's RAM"),
    ],
)
def test_elf_that_cannot_be_loaded_says_why(image: bytes, cause: str) -> None:
    with pytest.raises(KernelError, match=cause):
        load_kernel(image, memory_map=MEMORY_MAP)


@pytest.mark.parametrize("image", [PVH, elf64(), elf32(b"\xf4" * 64)], ids=["pvh", "64", "32"])
@given(data=st.data())
def test_elf_truncated_anywhere_is_a_kernel_error(image: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(image) - 1))
    with pytest.raises(KernelError) as caught:
        load_kernel(image[:length], memory_map=MEMORY_MAP)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_elf_with_damaged_bytes_loads_within_ram_or_is_a_kernel_error(seed: int) -> None:
    rng = random.Random(seed)
    image = bytearray(PVH)
    for _ in range(rng.randrange(1, 8)):
        image[rng.randrange(4, len(image))] = rng.choice([0, 1, 0x7F, 0xFF, rng.randrange(256)])
    try:
        plan = load_kernel(bytes(image), memory_map=MEMORY_MAP, initrd=b"initrd")
    except KernelError:
        return
    assert all(part.end <= RAM_BYTES for part in plan.loads)


@given(st.binary(max_size=200), st.sampled_from([0, 1, 4, 8, 1 << 60]))
def test_notes_of_any_bytes_end(data: bytes, align: int) -> None:
    for owner, _, desc in elf.notes(memoryview(data), align):
        assert len(owner) + len(desc) <= len(data)


def test_physical_entry_of_a_higher_half_kernel_is_translated() -> None:
    image = memoryview(elf32(bytes(64), entry=0xC010_0010, vaddr_offset=0xC000_0000))
    assert elf.physical_entry(elf.parse(image)) == MIB + 0x10

"""The CPU states kernels are entered in."""

from __future__ import annotations

import struct

from ostler.firmware import entry


def test_descriptor_flat_segments_match_the_manuals_encoding() -> None:
    assert entry.descriptor(entry.CODE_32) == 0x00CF_9B00_0000_FFFF
    assert entry.descriptor(entry.CODE_64) == 0x00AF_9B00_0000_FFFF
    assert entry.descriptor(entry.DATA) == 0x00CF_9300_0000_FFFF
    assert entry.descriptor(entry.TASK) == 0x0000_8B00_0000_0067


def test_identity_tables_walked_map_every_address_below_4_gib_to_itself() -> None:
    tables = entry.identity_tables()

    def row(table_gpa: int, index: int) -> int:
        (value,) = struct.unpack_from("<Q", tables, table_gpa - entry.PML4_GPA + 8 * index)
        assert value & entry.PTE_PRESENT_WRITE == entry.PTE_PRESENT_WRITE
        return int(value)

    for gpa in (0, 0x7000, 0x1F_FFFF, 0x20_0000, 0x4000_0000, 0xFEE0_0000, 0xFFFF_FFFF):
        pdpt = row(entry.PML4_GPA, gpa >> 39) & ~0xFFF
        directory = row(pdpt, gpa >> 30) & ~0xFFF
        page = row(directory, gpa >> 21 & 511)
        assert page & entry.PTE_LARGE
        assert (page & ~0xFFF) + (gpa & 0x1F_FFFF) == gpa
    assert entry.PML4_GPA + len(tables) <= entry.CMDLINE_GPA


def test_long_mode_registers_satisfy_the_64_bit_boot_protocol() -> None:
    regs, sregs, _ = entry.long_mode(0x100_0000, rsi=0x6000)
    assert (regs.rip, regs.rsi, regs.rflags) == (0x100_0000, 0x6000, 2)
    assert (sregs.cs.selector, sregs.ds.selector, sregs.cs.l, sregs.cs.db) == (
        0x10,
        0x18,
        True,
        False,
    )
    assert sregs.efer == 0x500
    assert sregs.cr0 == 0x8000_0011
    assert sregs.cr3 == entry.PML4_GPA


def test_protected_mode_registers_have_paging_off_and_flat_segments() -> None:
    regs, sregs, loads = entry.protected_mode(0x10_0000, rax=1, rbx=2)
    assert (regs.rax, regs.rbx, sregs.cr0, sregs.efer) == (1, 2, 0x11, 0)
    assert sregs.cs.db
    assert sregs.cs.limit == 0xFFFF_FFFF
    assert [load.gpa for load in loads] == [sregs.gdt.base]
    assert len(loads[0].data) == sregs.gdt.limit + 1

"""CPU states to enter a kernel in, and the tables in guest memory that they need.

Everything lies in the first 640 KiB, as in other direct loaders: the descriptor table at 0x500,
what a protocol hands over from 0x6000, page tables from 0x9000, command lines from 0x20000.
"""

from __future__ import annotations

import struct

from ostler.firmware.plan import Load
from ostler.registers import DescriptorTable, Regs, Segment, Sregs

GDT_GPA = 0x500
INFO_GPA = 0x6000
INFO_END = 0x9000
PML4_GPA = 0x9000
CMDLINE_GPA = 0x20000
CMDLINE_END = 0x90000

CR0_PE = 1 << 0
CR0_ET = 1 << 4
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
EFER_LMA = 1 << 10

CODE_EXECUTE_READ_ACCESSED = 11
DATA_READ_WRITE_ACCESSED = 3
TSS_BUSY = 11

PTE_PRESENT_WRITE = 0b11
PTE_LARGE = 1 << 7
GIB = 1 << 30
MAPPED_GIB = 4

FLAT = 0xFFFF_FFFF
CODE_32 = Segment(0, FLAT, 0x10, CODE_EXECUTE_READ_ACCESSED, present=True, db=True, s=True, g=True)
CODE_64 = Segment(0, FLAT, 0x10, CODE_EXECUTE_READ_ACCESSED, present=True, l=True, s=True, g=True)
DATA = Segment(0, FLAT, 0x18, DATA_READ_WRITE_ACCESSED, present=True, db=True, s=True, g=True)
TASK = Segment(0, 0x67, 0x20, TSS_BUSY, present=True)
NO_LDT = Segment(unusable=True)


def descriptor(segment: Segment) -> int:
    """The 8-byte GDT entry that loads as `segment` (SDM volume 3, 3.4.5)."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.kind | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    low = (limit & 0xFFFF) | (segment.base & 0xFF_FFFF) << 16 | access << 40
    return low | (limit >> 16) << 48 | flags << 52 | (segment.base >> 24 & 0xFF) << 56


def gdt(code: Segment) -> bytes:
    """Two null entries, then code (0x10), data (0x18) and a 16-byte task entry (0x20)."""
    return struct.pack("<6Q", 0, 0, descriptor(code), descriptor(DATA), descriptor(TASK), 0)


def identity_tables() -> bytes:
    """Page tables for `PML4_GPA` that map the first 4 GiB to themselves in 2 MiB pages."""
    pdpt_gpa = PML4_GPA + 0x1000
    pml4 = struct.pack("<Q4088x", pdpt_gpa | PTE_PRESENT_WRITE)
    directories = [pdpt_gpa + 0x1000 * (n + 1) | PTE_PRESENT_WRITE for n in range(MAPPED_GIB)]
    pdpt = struct.pack(f"<{MAPPED_GIB}Q", *directories).ljust(0x1000, b"\0")
    pages = (gpa | PTE_PRESENT_WRITE | PTE_LARGE for gpa in range(0, MAPPED_GIB * GIB, 2 << 20))
    return pml4 + pdpt + struct.pack(f"<{MAPPED_GIB * 512}Q", *pages)


def _sregs(code: Segment, cr0: int, cr3: int = 0, cr4: int = 0, efer: int = 0) -> Sregs:
    return Sregs(
        cs=code, ds=DATA, es=DATA, fs=DATA, gs=DATA, ss=DATA, tr=TASK, ldt=NO_LDT,
        gdt=DescriptorTable(GDT_GPA, len(gdt(code)) - 1), idt=DescriptorTable(),
        cr0=cr0, cr3=cr3, cr4=cr4, efer=efer,
    )  # fmt: skip


def long_mode(entry: int, rsi: int) -> tuple[Regs, Sregs, list[Load]]:
    """64-bit mode, flat segments, identity paging, interrupts off; and its tables in memory."""
    sregs = _sregs(CODE_64, CR0_PE | CR0_ET | CR0_PG, PML4_GPA, CR4_PAE, EFER_LME | EFER_LMA)
    loads = [
        Load(GDT_GPA, gdt(CODE_64), "the boot GDT"),
        Load(PML4_GPA, identity_tables(), "the boot page tables"),
    ]
    return Regs(rip=entry, rsi=rsi), sregs, loads


def protected_mode(
    entry: int, *, rax: int = 0, rbx: int = 0, rsi: int = 0
) -> tuple[Regs, Sregs, list[Load]]:
    """32-bit protected mode, flat segments, paging and interrupts off; and its GDT."""
    regs = Regs(rip=entry, rax=rax, rbx=rbx, rsi=rsi)
    return regs, _sregs(CODE_32, CR0_PE | CR0_ET), [Load(GDT_GPA, gdt(CODE_32), "the boot GDT")]

"""Multiboot specification 0.6.96: header, load (ELF or address fields), information structure.

Modules follow the kernel, page by page, as GRUB and QEMU place them: teaching kernels map just past
their end. Not modelled: video modes (a kernel that asks for one finds no framebuffer), drives, APM,
ROM tables.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from ostler.errors import KernelError
from ostler.firmware import elf, entry
from ostler.firmware.plan import E820_RAM, PAGE, BootPlan, Handover, Load, MemoryRange, check_loads

HEADER_MAGIC = 0x1BADB002
LOADER_MAGIC = 0x2BADB002
SEARCH_BYTES = 8192
FLAG_PAGE_ALIGN = 1 << 0
FLAG_MEMORY_INFO = 1 << 1
FLAG_VIDEO = 1 << 2
FLAG_ADDRESSES = 1 << 16
REQUIRED_KNOWN = FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO
REQUIRED_MASK = 0xFFFF

INFO_MEMORY = 1 << 0
INFO_CMDLINE = 1 << 2
INFO_MODS = 1 << 3
INFO_MMAP = 1 << 6
INFO_LOADER_NAME = 1 << 9
# flags, mem_*, boot_device, cmdline, mods_* | mmap_* | boot_loader_name; the gaps are not modelled.
INFO = struct.Struct("<7I16x2I12xI48x")
MODULE = struct.Struct("<IIII")
MMAP_ROW = struct.Struct("<IQQI")
LIMIT_32 = 0xFFFF_FFFF
LOADER_NAME = b"Ostler\0"


class Header(NamedTuple):
    """The header, `offset` bytes into the file; addresses are zero without `FLAG_ADDRESSES`."""

    offset: int
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0


def find_header(image: memoryview) -> Header | None:
    """The header in the first 8 KiB (3.1.1), or None."""
    start = bytes(image[:SEARCH_BYTES])
    magic = struct.pack("<I", HEADER_MAGIC)
    offset = start.find(magic)
    while offset >= 0:
        header = _header_at(start, offset)
        if header is not None:
            return header
        offset = start.find(magic, offset + 1)
    return None


def _header_at(start: bytes, offset: int) -> Header | None:
    if offset % 4 or offset + 12 > len(start):
        return None
    magic, flags, checksum = struct.unpack_from("<III", start, offset)
    if magic + flags + checksum & 0xFFFF_FFFF:
        return None
    if not flags & FLAG_ADDRESSES:
        return Header(offset, flags)
    if offset + 32 > len(start):
        return None
    return Header(offset, flags, *struct.unpack_from("<5I", start, offset + 12))


def load(
    image: memoryview, header: Header, program: elf.Program | None, handover: Handover
) -> BootPlan:
    """The plan for a multiboot image; `program` is its ELF reading where it is one."""
    unknown = header.flags & REQUIRED_MASK & ~REQUIRED_KNOWN
    if unknown:
        raise KernelError(
            f"requires multiboot features {unknown:#x}, which are not built; boot it from a disk"
        )
    kernel, start = _kernel(image, header, program)
    if max(start, *(part.end for part in kernel)) > LIMIT_32:
        raise KernelError("is a multiboot image that reaches above 4 GiB; link it lower")
    modules = _place_modules(kernel, handover)
    regs, sregs, tables = entry.protected_mode(start, rax=LOADER_MAGIC, rbx=entry.INFO_GPA)
    loads = [*kernel, *tables, *modules, *_information(modules, handover)]
    return BootPlan("multiboot", check_loads(loads, handover.memory_map), regs, sregs)


def _kernel(
    image: memoryview, header: Header, program: elf.Program | None
) -> tuple[list[Load], int]:
    if header.flags & FLAG_ADDRESSES:
        return [_by_addresses(image, header)], header.entry_addr
    if program is None:
        raise KernelError(
            "has a multiboot header but neither addresses nor an ELF file around it; relink it"
        )
    return list(elf.loads(image, program)), elf.physical_entry(program)


def _by_addresses(image: memoryview, header: Header) -> Load:
    """The a.out kludge (3.1.3): an end of 0 stands for the end of the file, a bss of 0 for none."""
    start = header.offset - (header.header_addr - header.load_addr)
    end = start + header.load_end_addr - header.load_addr if header.load_end_addr else len(image)
    if not 0 <= start < end or header.load_addr > header.header_addr:
        raise KernelError("has a multiboot header with impossible addresses; relink it")
    if end > len(image):
        raise KernelError(
            f"is truncated: {len(image)} bytes, its multiboot header promises {end}; fetch it again"
        )
    bss = max(0, header.bss_end_addr - header.load_addr - (end - start))
    return Load(header.load_addr, image[start:end], "the kernel", bss)


def _place_modules(kernel: list[Load], handover: Handover) -> list[Load]:
    at = max(load.end for load in kernel)
    placed = []
    for module in handover.modules:
        at = (at + PAGE - 1) & -PAGE
        placed.append(Load(at, module.data, "a module"))
        at += len(module.data)
    if at > LIMIT_32:
        raise KernelError("does not fit below 4 GiB with its modules; give it smaller ones")
    return placed


def _information(modules: Sequence[Load], handover: Handover) -> list[Load]:
    """The information structure and its tables at `INFO_GPA`, strings at `CMDLINE_GPA`."""
    strings, where = _strings([handover.cmdline, *(module.cmdline for module in handover.modules)])
    mods_gpa = entry.INFO_GPA + INFO.size
    mods = b"".join(
        MODULE.pack(mod.gpa, mod.end, text, 0) for mod, text in zip(modules, where[1:], strict=True)
    )
    mmap_gpa = mods_gpa + len(mods)
    mmap = b"".join(
        MMAP_ROW.pack(MMAP_ROW.size - 4, row.base, row.size, row.kind)
        for row in handover.memory_map
    )
    name_gpa = mmap_gpa + len(mmap)
    lower, upper = _memory_kib(handover.memory_map)
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODS | INFO_MMAP | INFO_LOADER_NAME
    info = INFO.pack(
        flags, lower, upper, 0, where[0], len(modules), mods_gpa, len(mmap), mmap_gpa, name_gpa
    )
    tables = Load(entry.INFO_GPA, info + mods + mmap + LOADER_NAME, "the multiboot information")
    if tables.end > entry.INFO_END:
        raise KernelError("cannot be told of so many modules and memory ranges; use fewer")
    return [tables, strings]


def _strings(texts: Sequence[str]) -> tuple[Load, list[int]]:
    """NUL-terminated strings in one piece, and the address of each."""
    blob, where = bytearray(), []
    for text in texts:
        where.append(entry.CMDLINE_GPA + len(blob))
        blob += text.encode("utf-8", "surrogateescape") + b"\0"
    load = Load(entry.CMDLINE_GPA, bytes(blob), "the command lines")
    if load.end > entry.CMDLINE_END:
        raise KernelError(f"gets command lines of {len(blob)} bytes in all; shorten them")
    return load, where


def _memory_kib(rows: Sequence[MemoryRange]) -> tuple[int, int]:
    """KiB of RAM from 0 (at most 640) and from 1 MiB up to the first hole (3.3)."""
    lower = next((row.end for row in rows if row.kind == E820_RAM and row.base == 0), 0)
    upper = next(
        (row.end for row in rows if row.kind == E820_RAM and row.base <= 1 << 20 < row.end), 1 << 20
    )
    return min(lower, 640 << 10) >> 10, min(upper - (1 << 20) >> 10, LIMIT_32)

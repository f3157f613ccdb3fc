"""ELF files: what to load where, the entry point, and the PVH entry note.

Only what a boot loader reads: the file header, program headers and notes. Every offset is taken as
hostile. Not modelled: sections, relocations, interpreters; addresses are physical (`p_paddr`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ostler.errors import KernelError
from ostler.firmware.plan import Buffer, Load, Part

MAGIC = b"\x7fELF"
CLASS_32, CLASS_64 = 1, 2
LITTLE_ENDIAN = 1
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_NOTE = 1, 4
MAX_HEADERS = 1024
MAX_GPA = 1 << 52
XEN_OWNER = b"Xen\0"
XEN_ELFNOTE_PHYS32_ENTRY = 18

EHDR_32 = struct.Struct("<16sHHIIIIIHHH")
EHDR_64 = struct.Struct("<16sHHIQQQIHHH")
PHDR_32 = struct.Struct("<8I")
PHDR_64 = struct.Struct("<IIQQQQQQ")


class ProgramHeader(NamedTuple):
    """A program header, in the order of the 32-bit form without `p_flags`."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


class Program(NamedTuple):
    """What a boot loader needs of an ELF file; `pvh_entry` is None without the note."""

    bits: int
    entry: int
    headers: tuple[ProgramHeader, ...]
    pvh_entry: int | None


def is_elf(image: memoryview) -> bool:
    """Whether the image begins as an ELF file does."""
    return bytes(image[:4]) == MAGIC


def is_elf64(image: memoryview) -> bool:
    """Whether the image begins as a 64-bit ELF file does."""
    return is_elf(image) and bytes(image[4:5]) == bytes([CLASS_64])


def parse(image: memoryview, size: int | None = None) -> Program:
    """The program in `image`; `KernelError` if it is cut short, damaged or not for this CPU.

    `size` is the file's where `image` is only its beginning; notes beyond that are not seen.
    """
    wide = is_elf64(image)
    ehdr = EHDR_64 if wide else EHDR_32
    if len(image) < ehdr.size:
        raise KernelError(f"is a truncated ELF file ({len(image)} bytes); fetch it again")
    ident, kind, machine, _, start, phoff, _, _, _, phentsize, phnum = ehdr.unpack_from(image)
    if (
        ident[4] not in (CLASS_32, CLASS_64)
        or ident[5] != LITTLE_ENDIAN
        or machine not in (EM_386, EM_X86_64)
    ):
        raise KernelError("is an ELF file for another CPU; use one built for x86")
    if kind not in (ET_EXEC, ET_DYN):
        raise KernelError("is an ELF object or core file, not a program; link it first")
    rows = _rows(image, wide, phoff, phentsize, phnum)
    headers = tuple(_checked(row, len(image) if size is None else size) for row in rows)
    if not any(header.type == PT_LOAD for header in headers):
        raise KernelError(
            "is an ELF file with nothing to load; use the linked kernel, not its debug symbols"
        )
    return Program(64 if wide else 32, start, headers, _pvh_entry(image, headers))


def _rows(
    image: memoryview, wide: bool, phoff: int, phentsize: int, phnum: int
) -> Iterator[ProgramHeader]:
    phdr = PHDR_64 if wide else PHDR_32
    if phentsize < phdr.size or phnum > MAX_HEADERS:
        raise KernelError(
            f"has {phnum} program headers of {phentsize} bytes: a damaged ELF file; fetch it again"
        )
    if phoff + phnum * phentsize > len(image):
        raise KernelError(
            f"is truncated: {len(image)} bytes end before the program headers; fetch it again"
        )
    for index in range(phnum):
        row = phdr.unpack_from(image, phoff + index * phentsize)
        kind, offset, vaddr, paddr, filesz, memsz, align = (
            (row[0], *row[2:]) if wide else (*row[:6], row[7])
        )
        yield ProgramHeader(kind, offset, vaddr, paddr, filesz, memsz, align)


def _checked(header: ProgramHeader, image_bytes: int) -> ProgramHeader:
    if header.type not in (PT_LOAD, PT_NOTE):
        return header
    end = header.offset + header.filesz
    if end > image_bytes:
        raise KernelError(
            f"is truncated: a segment ends at {end} of {image_bytes} bytes; fetch it again"
        )
    if header.type == PT_LOAD and (
        header.memsz < header.filesz or header.paddr + header.memsz > MAX_GPA
    ):
        raise KernelError(
            "has a segment with impossible sizes; the ELF file is damaged, fetch it again"
        )
    return header


def loads(image: memoryview, program: Program) -> Iterator[Load]:
    """The loadable segments at their physical addresses, bss as trailing zeros."""
    return segments(program, lambda offset, size: image[offset : offset + size])


def segments(program: Program, content: Callable[[int, int], Buffer | Part]) -> Iterator[Load]:
    """As `loads`, with the bytes of the file that `content(offset, size)` gives."""
    for header in program.headers:
        if header.type == PT_LOAD and header.memsz:
            data = content(header.offset, header.filesz)
            yield Load(header.paddr, data, "a kernel segment", header.memsz - header.filesz)


def physical_entry(program: Program) -> int:
    """The entry point's physical address: higher-half kernels give the virtual one."""
    for header in program.headers:
        if header.type == PT_LOAD and 0 <= program.entry - header.vaddr < header.memsz:
            return program.entry - header.vaddr + header.paddr
    return program.entry


def notes(data: memoryview, align: int) -> Iterator[tuple[bytes, int, memoryview]]:
    """Owner, type and descriptor of each note; ends at the first that does not fit."""
    align = 8 if align == 8 else 4
    at = 0
    while at + 12 <= len(data):
        name_bytes, desc_bytes, kind = struct.unpack_from("<III", data, at)
        desc_at = _up(at + 12 + name_bytes, align)
        if desc_at + desc_bytes > len(data):
            return
        yield (
            bytes(data[at + 12 : at + 12 + name_bytes]),
            kind,
            data[desc_at : desc_at + desc_bytes],
        )
        at = _up(desc_at + desc_bytes, align)


def _pvh_entry(image: memoryview, headers: tuple[ProgramHeader, ...]) -> int | None:
    for header in headers:
        if header.type != PT_NOTE:
            continue
        for owner, kind, desc in notes(
            image[header.offset : header.offset + header.filesz], header.align
        ):
            if owner == XEN_OWNER and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(desc) in (4, 8):
                return int.from_bytes(desc, "little") & 0xFFFF_FFFF
    return None


def _up(value: int, align: int) -> int:
    return (value + align - 1) & -align

"""Small kernels for the loader's tests: bzImage, ELF, multiboot, each field as asked for."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ostler.firmware import elf, linux
from ostler.firmware.plan import E820_RESERVED, MemoryRange

MIB = 1 << 20
RAM_BYTES = 256 * MIB
MEMORY_MAP = (
    MemoryRange(0, 0x9FC00),
    MemoryRange(0x9FC00, 0x100000 - 0x9FC00, E820_RESERVED),
    MemoryRange(MIB, RAM_BYTES - MIB),
)

KERNEL_GPA = 16 * MIB
KERNEL_VADDR = 0xFFFF_FFFF_8100_0000
BZIMAGE_HEADER = {
    "setup_sects": 1,
    "boot_flag": b"\x55\xaa",
    "jump": b"\xeb\x6a",
    "header": b"HdrS",
    "version": 0x020F,
    "loadflags": linux.LOADED_HIGH,
    "code32_start": linux.LOAD_GPA,
    "initrd_addr_max": 0x7FFF_FFFF,
    "relocatable_kernel": 1,
    "xloadflags": linux.XLF_KERNEL_64,
    "cmdline_size": 2047,
    "pref_address": KERNEL_GPA,
    "init_size": 2 * MIB,
}


def bzimage(payload: bytes = b"", code: bytes = b"\xf4" * 1024, **fields: int | bytes) -> bytes:
    """A bzImage of protected-mode `code`, then `payload`; `fields` override the setup header's."""
    body = code + payload
    body += bytes(-len(body) % 16)
    located = {"payload_offset": len(code), "payload_length": len(payload)} if payload else {}
    zeros = linux.SetupHeader(*linux.HEADER_FORMAT.unpack(bytes(linux.HEADER_FORMAT.size)))
    header = zeros._replace(
        **{**BZIMAGE_HEADER, "syssize": len(body) // 16, **located, **fields}  # type: ignore[arg-type]
    )
    setup = bytearray((header.setup_sects + 1) * linux.SECTOR)
    linux.HEADER_FORMAT.pack_into(setup, linux.HEADER_OFFSET, *header)
    return bytes(setup) + body


def note(owner: bytes, kind: int, desc: bytes) -> bytes:
    """An ELF note with 4-byte alignment."""
    head = struct.pack("<III", len(owner), len(desc), kind)
    return head + owner + bytes(-len(owner) % 4) + desc + bytes(-len(desc) % 4)


def elf64(
    segments: Sequence[tuple[int, bytes, int]] = ((KERNEL_GPA, b"\xf4" * 64, 128),),
    *,
    entry: int = KERNEL_GPA,
    notes: bytes = b"",
    machine: int = elf.EM_X86_64,
    kind: int = elf.ET_EXEC,
    vaddr_offset: int = KERNEL_VADDR - KERNEL_GPA,
) -> bytes:
    """A 64-bit ELF file; a segment is (physical address, bytes, size in memory)."""
    count = len(segments) + bool(notes)
    at = 64 + elf.PHDR_64.size * count
    headers, contents = b"", b""
    for gpa, data, memory_bytes in segments:
        offset = at + len(contents)
        vaddr = gpa + vaddr_offset & 0xFFFF_FFFF_FFFF_FFFF
        row = (elf.PT_LOAD, 7, offset, vaddr, gpa, len(data), memory_bytes, 4096)
        headers += elf.PHDR_64.pack(*row)
        contents += data
    if notes:
        row = (elf.PT_NOTE, 4, at + len(contents), 0, 0, len(notes), len(notes), 4)
        headers += elf.PHDR_64.pack(*row)
        contents += notes
    ident = elf.MAGIC + bytes([elf.CLASS_64, elf.LITTLE_ENDIAN, 1]) + bytes(9)
    ehdr = (ident, kind, machine, 1, entry, 64, 0, 0, 64, elf.PHDR_64.size, count)
    return elf.EHDR_64.pack(*ehdr) + bytes(6) + headers + contents


def elf32(data: bytes, *, gpa: int = MIB, entry: int = MIB, vaddr_offset: int = 0) -> bytes:
    """A 32-bit ELF file of one segment with 4 KiB of bss."""
    at = 52 + elf.PHDR_32.size
    ident = elf.MAGIC + bytes([elf.CLASS_32, elf.LITTLE_ENDIAN, 1]) + bytes(9)
    ehdr = (ident, elf.ET_EXEC, elf.EM_386, 1, entry, 52, 0, 0, 52, elf.PHDR_32.size, 1)
    row = (elf.PT_LOAD, at, gpa + vaddr_offset, gpa, len(data), len(data) + 4096, 7, 4096)
    return elf.EHDR_32.pack(*ehdr) + bytes(6) + elf.PHDR_32.pack(*row) + data


def multiboot_header(flags: int, *addresses: int) -> bytes:
    """A multiboot header with a right checksum."""
    checksum = -(0x1BADB002 + flags) & 0xFFFF_FFFF
    return struct.pack("<III", 0x1BADB002, flags, checksum) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )

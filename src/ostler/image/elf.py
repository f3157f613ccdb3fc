"""Finds a section, or the interpreter, in a 64-bit little-endian ELF file (gABI chapters 4, 5)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from ostler.errors import ConfigError

MAGIC = b"\x7fELF"
IDENT = MAGIC + b"\x02\x01"  # ELFCLASS64, ELFDATA2LSB
PROGRAM_TABLE = struct.Struct("<32xQ14xHH")  # e_phoff, e_phentsize, e_phnum
PROGRAM_HEADER = struct.Struct("<I4xQ16xQ16x")  # p_type, p_offset, p_filesz
PT_INTERP = 3
SECTION_TABLE = struct.Struct("<40xQ10xHHH")  # e_shoff, e_shentsize, e_shnum, e_shstrndx
SECTION_HEADER = struct.Struct("<I20xQQ24x")  # sh_name, sh_offset, sh_size


class Section(NamedTuple):
    """Where a section's name is in the string table, and where its bytes are in the file."""

    name_offset: int
    offset: int
    size: int


def interpreter(data: bytes) -> str | None:
    """The loader that a program names; `None` where it needs none, or is no 64-bit program."""
    if not data.startswith(IDENT):
        return None
    try:
        table, entry_bytes, count = PROGRAM_TABLE.unpack_from(data)
        for index in range(count):
            kind, offset, size = PROGRAM_HEADER.unpack_from(data, table + index * entry_bytes)
            if kind == PT_INTERP:
                return data[offset : offset + size].rstrip(b"\0").decode(errors="surrogateescape")
    except struct.error:
        return None  # damaged: what is wrong with it is not its interpreter
    return None


def section(data: bytes, name: str, path: Path) -> bytes:
    """The bytes of the section `name`; empty when the file has none. `path` is for messages.

    Raises:
        ConfigError: `data` is not such a file, or is cut short.
    """
    if not data.startswith(IDENT):
        raise ConfigError(f"{path}: not a 64-bit kernel module")
    try:
        return _find(data, name.encode())
    except (struct.error, IndexError) as error:
        raise ConfigError(f"{path}: cut short; unpack the kernel package again") from error


def _find(data: bytes, name: bytes) -> bytes:
    table, entry_bytes, count, names_index = SECTION_TABLE.unpack_from(data)
    sections = [
        Section(*SECTION_HEADER.unpack_from(data, table + i * entry_bytes)) for i in range(count)
    ]
    names = _bytes(data, sections[names_index])
    for entry in sections:
        if names[entry.name_offset :].split(b"\0", 1)[0] == name:
            return _bytes(data, entry)
    return b""


def _bytes(data: bytes, entry: Section) -> bytes:
    return data[entry.offset : entry.offset + entry.size]

"""Finds a named section in a 64-bit little-endian ELF file (gABI chapter 4, "Sections")."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from ostler.errors import ConfigError

IDENT = b"\x7fELF\x02\x01"  # magic, ELFCLASS64, ELFDATA2LSB
SECTION_TABLE = struct.Struct("<40xQ10xHHH")  # e_shoff, e_shentsize, e_shnum, e_shstrndx
SECTION_HEADER = struct.Struct("<I20xQQ24x")  # sh_name, sh_offset, sh_size


class Section(NamedTuple):
    """Where a section's name is in the string table, and where its bytes are in the file."""

    name_offset: int
    offset: int
    size: int


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

"""Names for addresses of guest code: a System.map, what /proc/kallsyms says, or an ELF file.

Only symbols of code count. Linux is entered without the step that moves it to a random place, so
the addresses of its System.map are those that it runs at; modules are in /proc/kallsyms only.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from ostler.config import MachineConfig
from ostler.errors import ConfigError
from ostler.firmware import elf

# `nm`'s letters for code; in Linux's map they include symbols of assembly.
CODE_TYPES = frozenset("tTwWi")
# The largest kernels have some 20 MiB of names; an ELF file may have all of its debug information.
MAP_LIMIT_BYTES = 256 << 20
ELF_LIMIT_BYTES = 2 << 30
# Code further behind its symbol is something else.
REACH_BYTES = 1 << 20

SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
SHT_SYMTAB = 2
STT_NOTYPE, STT_FUNC = 0, 2
SHF_EXECINSTR = 4


class Symbols:
    """Symbols by address."""

    def __init__(self, symbols: Iterable[tuple[int, str]] = ()) -> None:
        by_address: dict[int, str] = {}
        for address, name in symbols:
            by_address.setdefault(address, name)
        self._addresses = sorted(by_address)
        self._names = by_address

    def __len__(self) -> int:
        return len(self._addresses)

    def __add__(self, other: Symbols) -> Symbols:
        return Symbols([*self._names.items(), *other._names.items()])

    def name(self, address: int) -> str | None:
        """`symbol+0x12` for the symbol at or before `address`; None where none is near."""
        at = bisect_right(self._addresses, address) - 1
        if at < 0 or address - self._addresses[at] >= REACH_BYTES:
            return None
        start = self._addresses[at]
        offset = f"+{address - start:#x}" if address > start else ""
        return self._names[start] + offset

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file of any of the three kinds.

        Raises:
            ConfigError: it cannot be read or has no symbols of code; one line with the cure.
        """
        try:
            return cls(_of_file(path))
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--symbols {path}: {reason}; give a System.map") from error


def symbols_for(config: MachineConfig) -> Symbols:
    """Those of the file that `config` names, else those that the kernel itself has."""
    return Symbols.read(config.symbols) if config.symbols else Symbols(_of_kernel(config.kernel))


def _of_kernel(kernel: Path) -> Iterator[tuple[int, str]]:
    with kernel.open("rb") as file:
        if file.read(4) == elf.MAGIC:
            file.seek(0)
            yield from of_elf(file.read(ELF_LIMIT_BYTES))


def _of_file(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        # Also a directory or a device that never ends.
        raise ConfigError(f"--symbols {path}: is no file; give a System.map")
    with path.open("rb") as file:
        is_elf = file.read(4) == elf.MAGIC
        limit = ELF_LIMIT_BYTES if is_elf else MAP_LIMIT_BYTES
        size = path.stat().st_size
        if size > limit:
            raise ConfigError(f"--symbols {path}: {size} bytes are too many; give a System.map")
        file.seek(0)
        content = file.read(limit)
    return list(of_elf(content)) if is_elf else _of_map(path, content)


def _of_map(path: Path, content: bytes) -> list[tuple[int, str]]:
    found, rows = [], 0
    for number, line in enumerate(content.splitlines(), 1):
        fields = line.decode("utf-8", "replace").split()
        if not fields:
            continue
        rows += 1
        try:
            address, kind, name = int(fields[0], 16), fields[1], fields[2]
        except (ValueError, IndexError):
            shown = ascii(line[:40].decode("latin-1"))
            raise ConfigError(
                f"--symbols {path}: line {number}, {shown}, is not ADDRESS TYPE NAME; give a"
                " System.map, a copy of the guest's /proc/kallsyms or a vmlinux"
            ) from None
        if kind in CODE_TYPES and address:
            found.append((address, name))
    if not found:
        why = "hidden addresses" if rows > 100 else "no symbols of code, as Debian's System.map"
        raise ConfigError(
            f"--symbols {path}: {why}; have root in the guest print /proc/kallsyms and give that"
        )
    return found


def of_elf(content: bytes | memoryview) -> Iterator[tuple[int, str]]:
    """The symbols of code of a 64-bit ELF file; none where it is damaged or stripped."""
    try:
        if not elf.is_elf64(memoryview(content)):
            return
        (sections_at,) = struct.unpack_from("<Q", content, 40)
        _, count = struct.unpack_from("<HH", content, 58)
        sections = [
            SECTION.unpack_from(content, sections_at + index * SECTION.size)
            for index in range(count)
        ]
        for section in sections:
            if section[1] == SHT_SYMTAB:
                yield from _of_table(content, sections, section)
    except (struct.error, IndexError):
        return


def _of_table(
    content: bytes | memoryview, sections: list[tuple[int, ...]], table: tuple[int, ...]
) -> Iterator[tuple[int, str]]:
    start, size, link = table[4], table[5], table[6]
    names_at, names_size = sections[link][4], sections[link][5]
    names = bytes(content[names_at : names_at + names_size])
    for at in range(start, min(start + size, len(content)) - SYMBOL.size + 1, SYMBOL.size):
        name, info, _, section, value, _ = SYMBOL.unpack_from(content, at)
        if info & 15 not in (STT_NOTYPE, STT_FUNC) or not 0 < section < len(sections):
            continue
        if sections[section][2] & SHF_EXECINSTR:
            end = names.find(b"\0", name)
            yield value, names[name:end].decode("utf-8", "replace")

"""Persistent dirty bitmaps: the directory, and the tables and clusters of each."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from ostler.block.formats.qcow2.header import BITMAPS, Header
from ostler.block.image import ImageFile
from ostler.errors import DiskError

EXTENSION = struct.Struct(">IIQQ")
FIXED = struct.Struct(">QIIBBHI")
MAX_BITMAPS, MAX_DIRECTORY_BYTES = 65535, 64 << 20
MAX_TABLE_ENTRIES = 1 << 22
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
DIRTY_TRACKING = 1
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31


class Flag(IntFlag):
    """What the directory says of a bitmap."""

    IN_USE = 1
    """It was being changed, and not saved: what it says is not to be trusted."""
    AUTO = 2
    """Writes are to be recorded in it."""


@dataclass(slots=True)
class Bitmap:
    """A bitmap as the directory has it."""

    table_offset: int
    table_entries: int
    flags: Flag
    granularity_bits: int
    name: str
    type: int = DIRTY_TRACKING
    extra: bytes = b""

    @property
    def is_saved(self) -> bool:
        """What it says can be trusted."""
        return not self.flags & Flag.IN_USE

    @property
    def entry_bytes(self) -> int:
        """What it takes in the directory of an image made anew, without extra data."""
        length = FIXED.size + len(self.name.encode("utf-8", "surrogateescape"))
        return length + -length % 8

    def facts(self) -> dict[str, Any]:
        """The bitmap by the names of QEMU's `Qcow2BitmapInfo`."""
        names = {Flag.IN_USE: "in-use", Flag.AUTO: "auto"}
        flags = [name for flag, name in names.items() if self.flags & flag]
        return {"flags": flags, "name": self.name, "granularity": 1 << self.granularity_bits}

    def pack(self) -> bytes:
        """The entry, padded to a multiple of 8 bytes."""
        name = self.name.encode("utf-8", "surrogateescape")
        packed = FIXED.pack(
            self.table_offset,
            self.table_entries,
            self.flags,
            self.type,
            self.granularity_bits,
            len(name),
            len(self.extra),
        )
        packed += self.extra + name
        return packed + bytes(-len(packed) % 8)


def read_directory(file: ImageFile, header: Header) -> list[Bitmap]:
    """The bitmaps of an image. `DiskError` names what is damaged."""
    extension = header.extensions.get(BITMAPS)
    if extension is None:
        return []
    if len(extension) != EXTENSION.size:
        raise DiskError(f"{file.name}: the bitmaps extension is {len(extension)} bytes; damaged")
    count, _, size, offset = EXTENSION.unpack(extension)
    if count > MAX_BITMAPS or size > MAX_DIRECTORY_BYTES or offset % header.cluster_bytes:
        raise DiskError(f"{file.name}: bitmap_directory_size or _offset is damaged")
    raw = file.read(offset, size)
    bitmaps, at = [], 0
    for _ in range(count):
        bitmap, at = _parse(file.name, raw, at, header)
        bitmaps.append(bitmap)
    return bitmaps


def _parse(name: str, raw: bytes, at: int, header: Header) -> tuple[Bitmap, int]:
    if at + FIXED.size > len(raw):
        raise DiskError(f"{name}: the bitmap directory is cut off; the image is damaged")
    offset, entries, flags, kind, bits, name_bytes, extra_bytes = FIXED.unpack_from(raw, at)
    at += FIXED.size
    end = at + extra_bytes + name_bytes
    if end > len(raw) or entries > MAX_TABLE_ENTRIES or offset % header.cluster_bytes:
        raise DiskError(f"{name}: an entry of the bitmap directory is damaged")
    if not MIN_GRANULARITY_BITS <= bits <= MAX_GRANULARITY_BITS:
        raise DiskError(f"{name}: granularity_bits of a bitmap is {bits}; the image is damaged")
    text = raw[at + extra_bytes : end].decode("utf-8", "surrogateescape")
    extra = raw[at : at + extra_bytes]
    bitmap = Bitmap(offset, entries, Flag(flags), bits, text, kind, extra)
    return bitmap, end + -end % 8


def read_table(file: ImageFile, bitmap: Bitmap) -> list[int]:
    """Where each cluster of a bitmap is: an offset, 0 for all zeroes, 1 for all ones."""
    raw = file.read(bitmap.table_offset, 8 * bitmap.table_entries)
    if len(raw) < 8 * bitmap.table_entries:
        raise DiskError(f"{file.name}: the table of bitmap {bitmap.name} is not in the file")
    return list(struct.unpack(f">{bitmap.table_entries}Q", raw))


def places(file: ImageFile, header: Header) -> list[tuple[int, int]]:
    """All that the bitmaps take in the file: offset and bytes."""
    found = []
    bitmaps = read_directory(file, header)
    if bitmaps:
        _, _, size, offset = EXTENSION.unpack(header.extensions[BITMAPS])
        found.append((offset, size))
    for bitmap in bitmaps:
        found.append((bitmap.table_offset, 8 * bitmap.table_entries))
        for entry in read_table(file, bitmap):
            if entry & OFFSET_MASK:
                found.append((entry & OFFSET_MASK, header.cluster_bytes))
    return found

"""VHD, called vpc as in QEMU: images of Virtual PC, Hyper-V before VHDX, XenServer and Azure.

Source: "Virtual Hard Disk Image Format Specification" 1.0 (2006), and QEMU's block/vpc.c for which
of the two sizes in the footer counts. Read only. All integers are big-endian.

- fixed: the guest's bytes, then a footer of 512 bytes. Nothing at the start tells it from a raw
  image, so it is never guessed: the format has to be given.
- dynamic: a copy of the footer, a header, the block allocation table (BAT), and blocks that each
  begin with a bitmap of written sectors. As in QEMU the bitmap is not looked at: sectors that were
  never written are zeros in the file.

Left out on purpose: differencing disks (type 4), refused by name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ostler.block.formats.mapped import MappedImage, Place, Stored, Zero, require_readonly
from ostler.block.formats.table import EntryTable
from ostler.block.image import ImageFile, Opening
from ostler.block.registry import Format
from ostler.block.source import ByteSource, damaged, read_field, unsupported

FOOTER_COOKIE, HEADER_COOKIE = b"conectix", b"cxsparse"
FOOTER_BYTES, HEADER_BYTES, SECTOR_BYTES = 512, 1024, 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
UNALLOCATED = 0xFFFFFFFF

# The largest geometry of the footer; a disk that has it is as large as current_size says.
MAX_GEOMETRY = 65535 * 16 * 255
MAX_SECTORS = 0xFF000000
"""2040 GiB, Hyper-V's limit."""

# Creators whose disks have the size current_size; all others are as large as their geometry.
_CREATORS_BY_SIZE = (b"win ", b"qem2", b"d2v ", b"CTXS", b"tap\0", b"wa\0\0")

# cookie features version data_offset timestamp creator_app creator_version creator_os
# original_size current_size cylinders heads sectors type checksum
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII")
_CHECKSUM_OFFSET = 64
# cookie data_offset table_offset version max_table_entries block_size checksum
_HEADER = struct.Struct(">8sQQIIII")
_HEADER_CHECKSUM_OFFSET = 36


@dataclass(frozen=True, slots=True)
class Footer:
    """What is read of the footer."""

    disk_type: int
    data_offset: int
    creator_app: bytes
    current_size: int
    cylinders: int
    heads: int
    sectors_per_track: int

    @property
    def size_bytes(self) -> int:
        """The disk's size: by geometry for Virtual PC, by current_size for the others."""
        by_geometry = self.cylinders * self.heads * self.sectors_per_track
        if self.creator_app in _CREATORS_BY_SIZE or by_geometry == MAX_GEOMETRY:
            return self.current_size // SECTOR_BYTES * SECTOR_BYTES
        return by_geometry * SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Header:
    """What is read of a dynamic disk's header."""

    table_offset: int
    max_table_entries: int
    block_size: int

    @property
    def cluster_bytes(self) -> int:
        """A block, as `info` calls it."""
        return self.block_size


def parse_footer(source: ByteSource) -> Footer:
    """The footer: its copy at the start, or else the one at the end."""
    raw = read_field(source, 0, FOOTER_BYTES, "VHD footer")
    at_start = raw.startswith(FOOTER_COOKIE)
    if not at_start:
        raw = read_field(source, source.size_bytes - FOOTER_BYTES, FOOTER_BYTES, "VHD footer")
    (cookie, _, _, data_offset, _, creator, _, _, _, current_size, *rest) = _FOOTER.unpack_from(raw)
    cylinders, heads, sectors, disk_type, checksum = rest
    if cookie != FOOTER_COOKIE:
        raise damaged(source, "footer", "has no conectix cookie, neither first nor last")
    if checksum != checksum_of(raw, _CHECKSUM_OFFSET):
        raise damaged(source, "footer", f"checksum {checksum:#010x} does not match its bytes")
    if disk_type == DIFFERENCING:
        raise unsupported(source, "a differencing VHD (disk type 4)")
    if disk_type != (DYNAMIC if at_start else FIXED):
        raise damaged(source, "disk type", f"is {disk_type}, 2 is fixed and 3 dynamic")
    footer = Footer(disk_type, data_offset, creator, current_size, cylinders, heads, sectors)
    if footer.size_bytes > MAX_SECTORS * SECTOR_BYTES:
        raise damaged(source, "current_size", f"is {current_size}, above the format's 2040 GiB")
    return footer


def parse_header(source: ByteSource, footer: Footer) -> Header:
    """The header of a dynamic disk."""
    raw = read_field(source, footer.data_offset, HEADER_BYTES, "dynamic disk header (data_offset)")
    cookie, _, table_offset, _, entries, block_size, checksum = _HEADER.unpack_from(raw)
    if cookie != HEADER_COOKIE:
        raise damaged(source, "dynamic disk header", "has no cxsparse cookie")
    if checksum != checksum_of(raw, _HEADER_CHECKSUM_OFFSET):
        raise damaged(source, "dynamic disk header", f"checksum {checksum:#010x} does not match")
    if block_size < SECTOR_BYTES or block_size & (block_size - 1):
        raise damaged(source, "block_size", f"is {block_size}, not a power of two from 512")
    if entries * block_size < footer.size_bytes:
        raise damaged(
            source,
            "max_table_entries",
            f"is {entries}; with blocks of {block_size} that is less than the disk's"
            f" {footer.size_bytes} bytes",
        )
    return Header(table_offset, entries, block_size)


def checksum_of(raw: bytes, at: int) -> int:
    """One's complement of the sum of all bytes without the checksum's own."""
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF


class VpcImage(MappedImage):
    """An open VHD."""

    format = "vpc"

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source)
        self.footer = parse_footer(source)
        self.size_bytes = self.footer.size_bytes
        if self.footer.disk_type == DYNAMIC:
            self._open_dynamic()
        elif self.size_bytes > source.size_bytes - FOOTER_BYTES:
            raise damaged(
                source,
                "current_size",
                f"gives a disk of {self.size_bytes} bytes, but the file has"
                f" {source.size_bytes - FOOTER_BYTES} (truncated?)",
            )

    def _open_dynamic(self) -> None:
        self.header = parse_header(self.file, self.footer)
        self._bat = EntryTable(
            self.file,
            "block allocation table (table_offset, max_table_entries)",
            offset=self.header.table_offset,
            count=-(-self.size_bytes // self.header.block_size),
            entry_bytes=4,
            byteorder="big",
        )
        bitmap = self.header.block_size // SECTOR_BYTES // 8
        self._bitmap_bytes = -(-bitmap // SECTOR_BYTES) * SECTOR_BYTES

    def locate(self, offset: int, limit: int) -> Place:
        """Where the guest's bytes at `offset` are."""
        if self.footer.disk_type == FIXED:
            return Stored(limit, self.file, offset, "data")
        block_size = self.header.block_size
        block, within = divmod(offset, block_size)
        entry = self._bat[block]
        if entry == UNALLOCATED:
            blocks = self._bat.run(block, -(-(within + limit) // block_size))
            return Zero(min(blocks * block_size - within, limit), allocated=False)
        at = entry * SECTOR_BYTES + self._bitmap_bytes
        length = min(block_size - within, limit)
        return Stored(length, self.file, at + within, f"block {block}")


def _open(file: ImageFile, how: Opening) -> VpcImage:
    require_readonly(file, "vpc", how)
    return VpcImage(file)


FORMAT = Format(open=_open)

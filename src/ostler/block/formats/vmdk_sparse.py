"""Sparse extents of a VMDK: hosted (`KDMV`) and ESX (`COWD`), with compressed grains.

Source: VMware's "Virtual Disk Format 5.0", "Hosted Sparse Extents", "ESX Server Sparse Extents" and
"Stream-Optimized Compressed Sparse Extents". A grain directory points to grain tables, whose
entries point to grains. All offsets in the file are sectors of 512 bytes, little-endian.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Any

from ostler.block.formats.kept import Kept
from ostler.block.formats.mapped import Inherited, Packed, Place, PlaceMap, Stored, Zero
from ostler.block.formats.table import EntryTable
from ostler.block.source import ByteSource, damaged, read_field, unsupported

SECTOR_BYTES = 512
HOSTED_MAGIC, ESX_MAGIC = b"KDMV", b"COWD"
FLAG_ZERO_GRAIN, FLAG_COMPRESSED, FLAG_MARKERS = 1 << 2, 1 << 16, 1 << 17
GD_AT_END = 0xFFFFFFFFFFFFFFFF
DEFLATE = 1
GTE_ZEROED = 1
MARKER_END_OF_STREAM, MARKER_FOOTER = 0, 3

GRAIN_BYTES_MAX = 8 << 20
"""VMware writes grains of 64 KiB; a compressed one has to fit in memory."""
ENTRIES_PER_TABLE_MAX = 4096
CAPACITY_SECTORS_MAX = 1 << 37
"""64 TiB, the largest disk that VMware knows."""
TABLES_KEPT, GRAINS_KEPT = 64, 16

# magic version flags capacity grain_size descriptor_offset descriptor_size gtes_per_gt rgd_offset
# gd_offset overhead unclean_shutdown line-end characters compression
_HOSTED = struct.Struct("<4sIIQQQQIQQQB4sH")
# magic version flags sectors grain_size gd_offset gd_entries free_sector
_ESX = struct.Struct("<4s7I")
# A marker: a sector count or LBA, the size of what follows (0 for metadata), its type.
_MARKER = struct.Struct("<QII")
_GRAIN_MARKER = struct.Struct("<QI")
_LINE_ENDS = b"\n \r\n"


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """A sparse extent's header, of either kind; offsets and sizes in sectors."""

    capacity: int
    grain_sectors: int
    entries_per_table: int
    directory_offset: int
    directory_entries: int
    compressed: bool
    markers: bool
    zero_grains: bool
    descriptor_offset: int
    descriptor_sectors: int

    @property
    def cluster_bytes(self) -> int:
        """A grain, as `info` calls it."""
        return self.grain_sectors * SECTOR_BYTES


def is_sparse(start: bytes) -> bool:
    """Whether a file that begins with `start` is a sparse extent."""
    return start.startswith((HOSTED_MAGIC, ESX_MAGIC))


def parse_header(source: ByteSource) -> SparseHeader:
    """The header, or the footer where the header refers to it. Raises `DiskError`."""
    raw = read_field(source, 0, SECTOR_BYTES, "VMDK header")
    if raw.startswith(ESX_MAGIC):
        return _checked(source, _esx(source, raw))
    header = _hosted(source, raw)
    if header.directory_offset == GD_AT_END:
        header = _hosted(source, _footer(source))
        if header.directory_offset == GD_AT_END:
            raise damaged(source, "gdOffset", "of the footer refers to the footer")
    return _checked(source, header)


def _hosted(source: ByteSource, raw: bytes) -> SparseHeader:
    (magic, version, flags, capacity, grain, descriptor, descriptor_size, entries, _, directory,
     _, _, line_ends, compression) = _HOSTED.unpack_from(raw)  # fmt: skip
    if magic != HOSTED_MAGIC:
        raise damaged(source, "magic", f"is {magic!r}, not KDMV")
    if version not in (1, 2, 3):
        raise unsupported(source, f"VMDK version {version}")
    if line_ends not in (_LINE_ENDS, bytes(4)):
        raise damaged(source, "line end characters", "were changed by a transfer in text mode")
    if compression not in (0, DEFLATE):
        raise unsupported(source, f"VMDK compressAlgorithm {compression}")
    if not grain or not entries:
        raise damaged(source, "grainSize or numGTEsPerGT", f"is zero ({grain}, {entries})")
    return SparseHeader(
        capacity,
        grain,
        entries,
        directory,
        -(-capacity // (grain * entries)),
        compression == DEFLATE,
        bool(flags & FLAG_MARKERS),
        bool(flags & FLAG_ZERO_GRAIN),
        descriptor,
        descriptor_size,
    )


def _esx(source: ByteSource, raw: bytes) -> SparseHeader:
    _, version, _, capacity, grain, directory, entries, _ = _ESX.unpack_from(raw)
    if version != 1:
        raise unsupported(source, f"COWD version {version}")
    if not grain:
        raise damaged(source, "granularity", "is zero")
    needed = -(-capacity // (grain * 4096))
    if entries < needed:
        raise damaged(source, "numGDEntries", f"is {entries}, the capacity needs {needed}")
    return SparseHeader(capacity, grain, 4096, directory, needed, False, False, False, 0, 0)


def _footer(source: ByteSource) -> bytes:
    """The header's second copy: before the end-of-stream marker, behind a marker of its own."""
    start = source.size_bytes // SECTOR_BYTES * SECTOR_BYTES - 3 * SECTOR_BYTES
    raw = read_field(source, start, 3 * SECTOR_BYTES, "footer (gdOffset)")
    _, size, kind = _MARKER.unpack_from(raw)
    end = _MARKER.unpack_from(raw, 2 * SECTOR_BYTES)
    if (size, kind) != (0, MARKER_FOOTER) or end != (0, 0, MARKER_END_OF_STREAM):
        raise damaged(source, "footer", "has no markers around it (truncated?)")
    return raw[SECTOR_BYTES : 2 * SECTOR_BYTES]


def _checked(source: ByteSource, header: SparseHeader) -> SparseHeader:
    if header.capacity > CAPACITY_SECTORS_MAX:
        raise damaged(source, "capacity", f"is {header.capacity} sectors, above 64 TiB")
    grain = header.grain_sectors
    if grain & (grain - 1) or grain * SECTOR_BYTES > GRAIN_BYTES_MAX:
        raise damaged(source, "grainSize", f"is {grain} sectors, not a power of two up to 8 MiB")
    if header.entries_per_table > ENTRIES_PER_TABLE_MAX:
        raise damaged(source, "numGTEsPerGT", f"is {header.entries_per_table}")
    return header


class SparseExtent(PlaceMap):
    """A sparse extent; what it does not have is `Inherited`, if there is a parent or not."""

    def __init__(self, source: ByteSource, header: SparseHeader, kind: str = "") -> None:
        self.kind = kind
        self.size_bytes = header.capacity * SECTOR_BYTES
        self.header = header
        self._source = source
        self._directory = EntryTable(
            source,
            "grain directory (gdOffset, capacity)",
            offset=header.directory_offset * SECTOR_BYTES,
            count=header.directory_entries,
            entry_bytes=4,
            byteorder="little",
        )
        self._grain_bytes = header.grain_sectors * SECTOR_BYTES
        self._tables = Kept(TABLES_KEPT, self._open_table)
        self._grains = Kept(GRAINS_KEPT, self._inflate)

    def facts(self) -> dict[str, Any]:
        """By the names of QEMU's `VmdkExtentInfo`."""
        facts: dict[str, Any] = {"compressed": True} if self.header.compressed else {}
        return facts | {
            "virtual-size": self.size_bytes,
            "filename": self._source.name,
            "cluster-size": self._grain_bytes,
            "format": self.kind,
        }

    def locate(self, offset: int, limit: int) -> Place:
        """Where the guest's bytes at `offset` are."""
        grain, within = divmod(offset, self._grain_bytes)
        directory_index, index = divmod(grain, self.header.entries_per_table)
        if self._directory[directory_index] == 0:
            return Inherited(min(limit, self._gap(directory_index, index, within, limit)))
        table = self._tables.get(directory_index)
        entry = table[index]
        zeroed = entry == GTE_ZEROED and self.header.zero_grains
        if entry == 0 or zeroed:
            grains = table.run(index, -(-(within + limit) // self._grain_bytes))
            length = min(grains * self._grain_bytes - within, limit)
            return Zero(length, allocated=True) if zeroed else Inherited(length)
        length = min(self._grain_bytes - within, limit)
        if self.header.compressed:
            return Packed(length, grain, within)
        return Stored(length, self._source, entry * SECTOR_BYTES + within, f"grain {grain}")

    def unpack(self, key: int) -> bytes:
        """The grain's bytes; the last `GRAINS_KEPT` stay in memory."""
        return self._grains.get(key)

    def _gap(self, directory_index: int, index: int, within: int, limit: int) -> int:
        """Bytes from here to the next grain table that exists."""
        table_bytes = self.header.entries_per_table * self._grain_bytes
        before = index * self._grain_bytes + within
        tables = self._directory.run(directory_index, -(-(before + limit) // table_bytes))
        return tables * table_bytes - before

    def _open_table(self, directory_index: int) -> EntryTable:
        return EntryTable(
            self._source,
            f"grain table {directory_index}",
            offset=self._directory[directory_index] * SECTOR_BYTES,
            count=self.header.entries_per_table,
            entry_bytes=4,
            byteorder="little",
        )

    def _inflate(self, grain: int) -> bytes:
        directory_index, index = divmod(grain, self.header.entries_per_table)
        sector = self._tables.get(directory_index)[index]
        field = f"compressed grain {grain}"
        packed = self._packed(grain, sector * SECTOR_BYTES, field)
        content = _inflated(self._source, field, packed, self._grain_bytes)
        # The last grain of a disk may be shorter than others.
        wanted = min(self._grain_bytes, self.size_bytes - grain * self._grain_bytes)
        if len(content) < wanted:
            raise damaged(self._source, field, f"has {len(content)} bytes, not {wanted}")
        return content

    def _packed(self, grain: int, at: int, field: str) -> bytes:
        """The grain's stream, which a marker precedes or, without markers, its own end limits."""
        if not self.header.markers:
            size = min(self._grain_bytes, self._source.size_bytes - at)
            return read_field(self._source, at, size, field)
        marker = read_field(self._source, at, _GRAIN_MARKER.size, f"marker of {field}")
        lba, size = _GRAIN_MARKER.unpack(marker)
        if lba != grain * self.header.grain_sectors:
            raise damaged(self._source, f"marker of {field}", f"is for sector {lba}")
        # zlib adds at most a few bytes to what it cannot compress.
        if size > 2 * self._grain_bytes:
            raise damaged(self._source, f"marker of {field}", f"claims {size} bytes")
        return read_field(self._source, at + _GRAIN_MARKER.size, size, field)


def _inflated(source: ByteSource, field: str, packed: bytes, limit: int) -> bytes:
    """At most `limit` bytes, whatever the stream would give."""
    try:
        return zlib.decompressobj().decompress(packed, limit)
    except zlib.error as error:
        raise damaged(source, field, f"does not inflate ({error})") from None

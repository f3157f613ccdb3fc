"""VHDX, Hyper-V's disk images: read only.

Source: [MS-VHDX]. Two headers of which the newer valid one counts, two region tables, a metadata
region with the disk's sizes, and a block allocation table (BAT) in which a sector bitmap entry
follows every `chunk_ratio` payload entries. A log that was not applied is applied in memory.

Left out on purpose: differencing images (HasParent), refused by name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from ostler.block.formats.mapped import MappedImage, Place, Stored, Zero, require_readonly
from ostler.block.formats.table import EntryTable
from ostler.block.formats.vhdx_checksum import is_sealed
from ostler.block.formats.vhdx_log import replayed
from ostler.block.image import ImageFile, Opening
from ostler.block.registry import Format
from ostler.block.source import ByteSource, damaged, read_field, unsupported

SIGNATURE = b"vhdxfile"
KIB, MIB = 1 << 10, 1 << 20
HEADER_OFFSETS = (64 * KIB, 128 * KIB)
REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)
HEADER_BYTES, REGION_TABLE_BYTES, METADATA_TABLE_BYTES = 4 * KIB, 64 * KIB, 64 * KIB
ENTRIES_MAX = 2047
SIZE_BYTES_MAX = 64 << 40
BLOCK_BYTES_MIN, BLOCK_BYTES_MAX = MIB, 256 * MIB
SECTORS_PER_CHUNK = 1 << 23

# signature checksum sequence_number file_write_guid data_write_guid log_guid log_version version
# log_length log_offset
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
# signature checksum entry_count reserved; entries: guid file_offset length required
_REGIONS, _REGION = struct.Struct("<4sIII"), struct.Struct("<16sQII")
# signature reserved entry_count reserved; entries: item_id offset length flags reserved
_ITEMS, _ITEM = struct.Struct("<8sHH20s"), struct.Struct("<16sIIII")
_ITEM_REQUIRED = 1 << 2
_FLAG_FIXED, _FLAG_HAS_PARENT = 1, 2

BAT_REGION = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
VIRTUAL_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
PAGE_83_DATA = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR_SIZE = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_NAMES = {
    FILE_PARAMETERS: "File Parameters",
    VIRTUAL_DISK_SIZE: "Virtual Disk Size",
    LOGICAL_SECTOR_SIZE: "Logical Sector Size",
    PHYSICAL_SECTOR_SIZE: "Physical Sector Size",
}
_SIZES = {FILE_PARAMETERS: 8, VIRTUAL_DISK_SIZE: 8, LOGICAL_SECTOR_SIZE: 4, PHYSICAL_SECTOR_SIZE: 4}
_KNOWN_ITEMS = {*_NAMES, PAGE_83_DATA, PARENT_LOCATOR}

# BAT entries: the state in the lowest three bits, the place in MiB from bit 20 on.
NOT_PRESENT, UNDEFINED, BLOCK_ZERO, UNMAPPED, UNMAPPED_BEFORE_V1 = 0, 1, 2, 3, 5
FULLY_PRESENT, PARTIALLY_PRESENT = 6, 7
_ABSENT, _ZEROED = (NOT_PRESENT, UNDEFINED), (BLOCK_ZERO, UNMAPPED, UNMAPPED_BEFORE_V1)
_STATE_MASK, _PLACE_MASK = 7, ~0xFFFFF & (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Header:
    """What is read of a header."""

    sequence_number: int
    log_guid: bytes
    log_version: int
    log_length: int
    log_offset: int


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the metadata says; sizes in bytes."""

    block_size: int
    fixed: bool
    disk_size: int
    logical_sector_size: int
    physical_sector_size: int

    @property
    def cluster_bytes(self) -> int:
        """A block, as `info` calls it."""
        return self.block_size

    @property
    def chunk_ratio(self) -> int:
        """Payload entries for each entry of a sector bitmap."""
        return SECTORS_PER_CHUNK * self.logical_sector_size // self.block_size


def parse_header(source: ByteSource) -> Header:
    """The valid header with the higher sequence number. Raises `DiskError` without one."""
    if read_field(source, 0, len(SIGNATURE), "VHDX signature") != SIGNATURE:
        raise damaged(source, "VHDX signature", "is not vhdxfile")
    headers = [header for at in HEADER_OFFSETS if (header := _header_at(source, at))]
    if not headers:
        raise damaged(source, "VHDX headers", "are both invalid (signature, checksum or version)")
    header = max(headers, key=lambda header: header.sequence_number)
    if header.log_version:
        raise unsupported(source, f"VHDX LogVersion {header.log_version}")
    return header


def _header_at(source: ByteSource, at: int) -> Header | None:
    raw = read_field(source, at, HEADER_BYTES, "VHDX header")
    fields = _HEADER.unpack_from(raw)
    signature, _, sequence, _, _, log_guid, log_version, version, log_length, log_offset = fields
    if signature != b"head" or version != 1 or not is_sealed(raw):
        return None
    return Header(sequence, log_guid, log_version, log_length, log_offset)


def parse_regions(source: ByteSource) -> dict[UUID, tuple[int, int]]:
    """Offset and length of the BAT and metadata regions, from the first valid region table."""
    for at in REGION_TABLE_OFFSETS:
        raw = read_field(source, at, REGION_TABLE_BYTES, "region table")
        signature, _, count, _ = _REGIONS.unpack_from(raw)
        if signature == b"regi" and count <= ENTRIES_MAX and is_sealed(raw):
            return _regions(source, raw, count)
    raise damaged(source, "region tables", "are both invalid (signature, checksum or EntryCount)")


def _regions(source: ByteSource, raw: bytes, count: int) -> dict[UUID, tuple[int, int]]:
    regions: dict[UUID, tuple[int, int]] = {}
    for index in range(count):
        guid, offset, length, required = _REGION.unpack_from(
            raw, _REGIONS.size + index * _REGION.size
        )
        kind = UUID(bytes_le=guid)
        if kind not in (BAT_REGION, METADATA_REGION):
            if required & 1:
                raise unsupported(source, f"the required VHDX region {kind}")
            continue
        if kind in regions:
            raise damaged(source, "region table", f"has the region {kind} twice")
        if offset % MIB or length % MIB or offset < MIB:
            raise damaged(source, "region table", f"has {length:#x} bytes at {offset:#x}, not MiBs")
        regions[kind] = (offset, length)
    for kind, name in ((BAT_REGION, "BAT"), (METADATA_REGION, "metadata")):
        if kind not in regions:
            raise damaged(source, "region table", f"lacks the {name} region")
    _refuse_overlap(source, *regions.values())
    return regions


def _refuse_overlap(source: ByteSource, one: tuple[int, int], other: tuple[int, int]) -> None:
    if one[0] < other[0] + other[1] and other[0] < one[0] + one[1]:
        raise damaged(source, "region table", "has regions that overlap")


def parse_metadata(source: ByteSource, offset: int, length: int) -> Parameters:
    """The metadata region at `offset`."""
    items = _items(source, offset, length)
    values = {kind: _item(source, offset, length, items, kind) for kind in _NAMES}
    block_size = values[FILE_PARAMETERS] & 0xFFFFFFFF
    flags = values[FILE_PARAMETERS] >> 32
    if flags & _FLAG_HAS_PARENT:
        raise unsupported(source, "a differencing VHDX (HasParent)")
    parameters = Parameters(
        block_size,
        bool(flags & _FLAG_FIXED),
        values[VIRTUAL_DISK_SIZE],
        values[LOGICAL_SECTOR_SIZE],
        values[PHYSICAL_SECTOR_SIZE],
    )
    _check(source, parameters)
    return parameters


def _items(source: ByteSource, offset: int, length: int) -> dict[UUID, tuple[int, int]]:
    raw = read_field(source, offset, METADATA_TABLE_BYTES, "metadata table")
    signature, _, count, _ = _ITEMS.unpack_from(raw)
    if signature != b"metadata" or count > ENTRIES_MAX:
        raise damaged(source, "metadata table", f"has signature {signature!r}, {count} entries")
    items: dict[UUID, tuple[int, int]] = {}
    for index in range(count):
        guid, at, size, flags, _ = _ITEM.unpack_from(raw, _ITEMS.size + index * _ITEM.size)
        kind = UUID(bytes_le=guid)
        if kind not in _KNOWN_ITEMS and flags & _ITEM_REQUIRED:
            raise unsupported(source, f"the required VHDX metadata item {kind}")
        if kind in items:
            raise damaged(source, "metadata table", f"has the item {kind} twice")
        items[kind] = (at, size)
    return items


def _item(
    source: ByteSource, offset: int, length: int, items: dict[UUID, tuple[int, int]], kind: UUID
) -> int:
    """The item's value as one integer."""
    name, wanted = _NAMES[kind], _SIZES[kind]
    if kind not in items:
        raise damaged(source, "metadata table", f"lacks the item {name}")
    at, size = items[kind]
    if size < wanted or at + size > length or at < METADATA_TABLE_BYTES:
        raise damaged(source, name, f"lies at {at:#x} with {size} bytes")
    return int.from_bytes(read_field(source, offset + at, wanted, name), "little")


def _check(source: ByteSource, parameters: Parameters) -> None:
    block, size = parameters.block_size, parameters.disk_size
    if block & (block - 1) or not BLOCK_BYTES_MIN <= block <= BLOCK_BYTES_MAX:
        raise damaged(source, "BlockSize", f"is {block}, not a power of two of 1 to 256 MiB")
    for name in ("logical_sector_size", "physical_sector_size"):
        value = getattr(parameters, name)
        if value not in (512, 4096):
            raise damaged(source, name, f"is {value}, neither 512 nor 4096")
    if size > SIZE_BYTES_MAX or size % parameters.logical_sector_size:
        raise damaged(source, "VirtualDiskSize", f"is {size}: above 64 TiB, or no whole sectors")


class VhdxImage(MappedImage):
    """An open VHDX."""

    format = "vhdx"

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source)
        newest = parse_header(source)
        self.log_replayed = any(newest.log_guid)
        self.file = replayed(source, newest.log_offset, newest.log_length, newest.log_guid)
        regions = parse_regions(self.file)
        self.header = parse_metadata(self.file, *regions[METADATA_REGION])
        self.size_bytes = self.header.disk_size
        self._bat = self._open_bat(*regions[BAT_REGION])

    def locate(self, offset: int, limit: int) -> Place:
        """Where the guest's bytes at `offset` are."""
        block_size = self.header.block_size
        block, within = divmod(offset, block_size)
        entry = self._bat[self._index(block)]
        state = entry & _STATE_MASK
        if state == FULLY_PRESENT:
            at = (entry & _PLACE_MASK) + within
            return Stored(min(block_size - within, limit), self.file, at, f"block {block}")
        if state not in _ABSENT and state not in _ZEROED:
            raise damaged(self.file, f"BAT entry of block {block}", f"has state {state}")
        # Equal entries up to the chunk's end, where the sector bitmap's is in between.
        ratio = self.header.chunk_ratio
        blocks = min(-(-(within + limit) // block_size), ratio - block % ratio)
        run = self._bat.run(self._index(block), blocks) * block_size - within
        return Zero(min(run, limit), allocated=state in _ZEROED)

    def _index(self, block: int) -> int:
        """The place of a block's entry in the BAT."""
        return block + block // self.header.chunk_ratio

    def _open_bat(self, offset: int, length: int) -> EntryTable:
        blocks = -(-self.size_bytes // self.header.block_size)
        count = blocks + max(0, blocks - 1) // self.header.chunk_ratio
        if count * 8 > length:
            raise damaged(self.file, "BAT region", f"has {length} bytes for {count} entries")
        return EntryTable(
            self.file,
            "block allocation table",
            offset=offset,
            count=count,
            entry_bytes=8,
            byteorder="little",
        )


def _open(file: ImageFile, how: Opening) -> VhdxImage:
    require_readonly(file, "vhdx", how)
    return VhdxImage(file)


FORMAT = Format(open=_open)

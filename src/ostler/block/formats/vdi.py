"""VDI, VirtualBox's disk images, version 1.1: read only.

Source: VirtualBox's `VDICore.h` as QEMU's block/vdi.c reads it. A header, a map with one entry for
each block, then the blocks in the order in which they were first written.

Left out on purpose: differencing images (a parent UUID) and sizes of blocks that are no power of
two; both are refused by name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ostler.block.formats.mapped import MappedImage, Place, Stored, Zero, require_readonly
from ostler.block.formats.table import EntryTable
from ostler.block.image import ImageFile, Opening
from ostler.block.registry import Format
from ostler.block.source import ByteSource, damaged, read_field, unsupported

SIGNATURE = 0xBEDA107F
SIGNATURE_OFFSET = 64
VERSION_1_1 = 0x00010001
TYPE_DYNAMIC, TYPE_STATIC = 1, 2
UNALLOCATED, DISCARDED = 0xFFFFFFFF, 0xFFFFFFFE

SECTOR_BYTES = 512
BLOCK_BYTES_MIN, BLOCK_BYTES_MAX = 4096, 256 << 20
BLOCKS_MAX = 0x3FFFFFFF

# signature version header_size image_type image_flags description offset_bmap offset_data
# cylinders heads sectors sector_size unused disk_size block_size block_extra blocks_in_image
# blocks_allocated uuid_image uuid_last_snap uuid_link uuid_parent
_HEADER = struct.Struct("<5I256s2I3I2IQ4I16s16s16s16s")
_NO_UUID = bytes(16)


@dataclass(frozen=True, slots=True)
class Header:
    """What is read of the header; offsets and sizes in bytes."""

    image_type: int
    offset_bmap: int
    offset_data: int
    disk_size: int
    block_size: int
    block_extra: int
    blocks_in_image: int

    @property
    def cluster_bytes(self) -> int:
        """A block, as `info` calls it."""
        return self.block_size


def parse_header(source: ByteSource) -> Header:
    """The header, checked. Raises `DiskError` naming the field that is wrong."""
    raw = read_field(source, SIGNATURE_OFFSET, _HEADER.size, "VDI header")
    fields = _HEADER.unpack(raw)
    signature, version, _, image_type = fields[:4]
    offset_bmap, offset_data = fields[6:8]
    sector_size, _, disk_size, block_size, block_extra, blocks_in_image = fields[11:17]
    uuid_link, uuid_parent = fields[20:22]
    if signature != SIGNATURE:
        raise damaged(source, "signature", f"is {signature:#010x}, not {SIGNATURE:#010x}")
    if version != VERSION_1_1:
        raise unsupported(source, f"VDI version {version >> 16}.{version & 0xFFFF}")
    if image_type not in (TYPE_DYNAMIC, TYPE_STATIC):
        raise unsupported(source, f"VDI image_type {image_type}")
    if uuid_link != _NO_UUID or uuid_parent != _NO_UUID:
        raise unsupported(source, "a differencing VDI (uuid_parent is set)")
    if sector_size != SECTOR_BYTES:
        raise unsupported(source, f"sector_size {sector_size}")
    for field, offset in (("offset_bmap", offset_bmap), ("offset_data", offset_data)):
        if offset % SECTOR_BYTES:
            raise unsupported(source, f"{field} {offset:#x}, not a multiple of {SECTOR_BYTES},")
    if block_size & (block_size - 1) or not BLOCK_BYTES_MIN <= block_size <= BLOCK_BYTES_MAX:
        raise unsupported(source, f"block_size {block_size}")
    if blocks_in_image > BLOCKS_MAX:
        raise damaged(source, "blocks_in_image", f"is {blocks_in_image}, above {BLOCKS_MAX}")
    # VBoxManage convertfromraw makes disks of odd sizes; what is added reads as zeros.
    disk_size += -disk_size % SECTOR_BYTES
    if disk_size > blocks_in_image * block_size:
        raise damaged(
            source, "disk_size", f"is {disk_size}, {blocks_in_image} blocks of {block_size} are not"
        )
    return Header(
        image_type, offset_bmap, offset_data, disk_size, block_size, block_extra, blocks_in_image
    )


class VdiImage(MappedImage):
    """An open VDI."""

    format = "vdi"

    def __init__(self, source: ByteSource) -> None:
        super().__init__(source)
        self.header = parse_header(source)
        self.size_bytes = self.header.disk_size
        self._bmap = EntryTable(
            source,
            "block map (offset_bmap, blocks_in_image)",
            offset=self.header.offset_bmap,
            count=self.header.blocks_in_image,
            entry_bytes=4,
            byteorder="little",
        )

    def locate(self, offset: int, limit: int) -> Place:
        """Where the guest's bytes at `offset` are."""
        block_size = self.header.block_size
        block, within = divmod(offset, block_size)
        entry = self._bmap[block]
        if entry in (UNALLOCATED, DISCARDED):
            blocks = self._bmap.run(block, -(-(within + limit) // block_size))
            return Zero(min(blocks * block_size - within, limit), entry == DISCARDED)
        if entry >= self.header.blocks_in_image:
            raise damaged(
                self.file,
                f"block map entry {block}",
                f"is {entry}, but there are {self.header.blocks_in_image} blocks",
            )
        slot = block_size + self.header.block_extra
        at = self.header.offset_data + entry * slot + self.header.block_extra
        length = min(block_size - within, limit)
        return Stored(length, self.file, at + within, f"block {block}")


def _open(file: ImageFile, how: Opening) -> VdiImage:
    require_readonly(file, "vdi", how)
    return VdiImage(file)


FORMAT = Format(open=_open)

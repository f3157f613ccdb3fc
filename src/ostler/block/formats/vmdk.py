"""VMDK, VMware's disk images: read only.

Source: VMware's "Virtual Disk Format 5.0" and QEMU's block/vmdk.c. A disk is a row of extents that
a descriptor names: flat files, sparse files, or one sparse file that has its descriptor inside.

Read: monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, streamOptimized,
vmfs and vmfsSparse, version 1 to 3, zeroed grains, parents. Left out on purpose, and refused by
name: seSparse, raw device maps, partitioned and full devices.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from ostler.block.formats.mapped import (
    Inherited,
    MappedImage,
    Packed,
    Place,
    PlaceMap,
    Stored,
    Zero,
    require_readonly,
)
from ostler.block.formats.vmdk_descriptor import (
    EMPTY_TYPE,
    FLAT_TYPES,
    NO_PARENT,
    Descriptor,
    ExtentLine,
    read_descriptor,
)
from ostler.block.formats.vmdk_sparse import SparseExtent, SparseHeader, is_sparse, parse_header
from ostler.block.image import BackingReference, Image, ImageFile, Opening, open_with
from ostler.block.registry import Format, open_file
from ostler.block.source import ByteSource, damaged

SECTOR_BYTES = 512
DESCRIPTOR_FILE_BYTES = 64 << 10
"""The most that a descriptor in a file of its own is read of."""

OpenFile = Callable[[str], ByteSource]
"""Opens a file that the descriptor names, relative to the descriptor's place."""


class FlatExtent(PlaceMap):
    """An extent whose bytes are a file's, from `offset` on."""

    def __init__(self, source: ByteSource, line: ExtentLine) -> None:
        self.size_bytes = line.sectors * SECTOR_BYTES
        self._source = source
        self._offset = line.offset_sectors * SECTOR_BYTES
        if self._offset + self.size_bytes > source.size_bytes:
            raise damaged(
                source,
                "extent line",
                f"claims {self.size_bytes} bytes at {self._offset:#x}, the file has"
                f" {source.size_bytes} (truncated?)",
            )

    def facts(self) -> dict[str, Any]:
        """By the names of QEMU's `VmdkExtentInfo`."""
        return {"virtual-size": self.size_bytes, "filename": self._source.name, "format": "FLAT"}

    def locate(self, offset: int, limit: int) -> Place:
        """All of it is there."""
        return Stored(limit, self._source, self._offset + offset, "flat extent")


class EmptyExtent(PlaceMap):
    """An extent of type ZERO."""

    def __init__(self, line: ExtentLine) -> None:
        self.size_bytes = line.sectors * SECTOR_BYTES

    def facts(self) -> dict[str, Any]:
        """As of the other extents; there is no file."""
        return {"virtual-size": self.size_bytes, "filename": "", "format": EMPTY_TYPE}

    def locate(self, offset: int, limit: int) -> Place:
        """None of it is there."""
        return Zero(limit, allocated=True)


ExtentMap = FlatExtent | EmptyExtent | SparseExtent


class VmdkImage(MappedImage):
    """An open VMDK. `open_file` opens its extents; who opens images by name sets `backing`."""

    format = "vmdk"

    def __init__(self, source: ByteSource, open_file: OpenFile) -> None:
        super().__init__(source)
        self._opened: list[ByteSource] = []
        self._open_file = open_file
        try:
            self.descriptor, self._extent_maps = self._open()
        except BaseException:
            self._close_extents()
            raise
        self._starts = [0]
        for extent in self._extent_maps:
            self._starts.append(self._starts[-1] + extent.size_bytes)
        self.size_bytes = self._starts.pop()

    @property
    def header(self) -> SparseHeader | None:
        """Of the first extent, if that is sparse."""
        first = self._extent_maps[0]
        return first.header if isinstance(first, SparseExtent) else None

    @property
    def backing_reference(self) -> BackingReference | None:
        """The image below, as the descriptor names it: always another VMDK."""
        hint = self.descriptor.parent_hint if self.descriptor else None
        return None if hint is None else BackingReference(hint, "vmdk")

    def format_specific(self) -> dict[str, Any]:
        """What `qemu-img info` shows of a VMDK."""
        facts: dict[str, Any] = {"create-type": "monolithicSparse"}
        if (descriptor := self.descriptor) is not None:
            facts = {
                "cid": descriptor.cid,
                "parent-cid": descriptor.parent_cid,
                "create-type": descriptor.create_type,
            }
        return facts | {"extents": [extent.facts() for extent in self._extent_maps]}

    def close(self) -> None:
        """Close the backing image and all files; a second call does nothing."""
        self._close_extents()
        super().close()

    def locate(self, offset: int, limit: int) -> Place:
        """Where the guest's bytes at `offset` are."""
        index = bisect_right(self._starts, offset) - 1
        extent, within = self._extent_maps[index], offset - self._starts[index]
        found = extent.locate(within, min(limit, extent.size_bytes - within))
        match found:
            case Inherited(length) if self.backing is None:
                return Zero(length, allocated=False)
            case Packed(length, key, skip):
                # One number says extent and grain.
                return Packed(length, key * len(self._extent_maps) + index, skip)
        return found

    def unpack(self, key: int) -> bytes:
        """The bytes of a compressed grain."""
        grain, index = divmod(key, len(self._extent_maps))
        return self._extent_maps[index].unpack(grain)

    def _close_extents(self) -> None:
        while self._opened:
            self._opened.pop().close()

    def _open(self) -> tuple[Descriptor | None, list[ExtentMap]]:
        file = self.file
        if not is_sparse(file.read(0, 4)):
            length = min(file.size_bytes, DESCRIPTOR_FILE_BYTES)
            descriptor = read_descriptor(file, 0, length)
            return descriptor, self._open_extents(descriptor)
        header = parse_header(file)
        inside = header.descriptor_offset * SECTOR_BYTES
        if not inside:
            return None, [SparseExtent(file, header)]
        descriptor = read_descriptor(file, inside, header.descriptor_sectors * SECTOR_BYTES)
        if header.capacity == 0:
            return descriptor, self._open_extents(descriptor)
        return descriptor, [SparseExtent(file, header)]

    def _open_extents(self, descriptor: Descriptor) -> list[ExtentMap]:
        if not descriptor.extents:
            raise damaged(self.file, "extent description", "names no extent")
        return [self._open_extent(line) for line in descriptor.extents]

    def _open_extent(self, line: ExtentLine) -> ExtentMap:
        if line.kind == EMPTY_TYPE:
            return EmptyExtent(line)
        source = self._open_file(line.file)
        self._opened.append(source)
        if line.kind in FLAT_TYPES:
            return FlatExtent(source, line)
        header = parse_header(source)
        if header.capacity != line.sectors:
            raise damaged(
                source,
                "capacity",
                f"is {header.capacity} sectors, not {line.sectors} as described",
            )
        return SparseExtent(source, header, line.kind)


def beside(base: str, name: str) -> str:
    """`name` as the image at `base` means it: relative to the place of that image."""
    if name.startswith("/") or "://" in name:
        return name
    directory, slash, _ = base.rpartition("/")
    return directory + slash + name


def _open(file: ImageFile, how: Opening) -> VmdkImage:
    require_readonly(file, "vmdk", how)
    image = VmdkImage(
        file, lambda name: open_file(beside(file.name, name), readonly=True, lock=how.lock)
    )
    try:
        if how.backing and image.backing_reference is not None:
            image.backing = _open_parent(image, image.backing_reference, how)
    except BaseException:
        image.close()
        raise
    return image


def _open_parent(image: VmdkImage, reference: BackingReference, how: Opening) -> Image:
    path = beside(image.name, reference.filename)
    chain = (*how.chain, image.name)
    if path in chain:
        raise damaged(image.file, "parentFileNameHint", f"{path} leads in a circle")
    parent = open_with(path, reference.format, how._replace(chain=chain))
    descriptor = parent.descriptor if isinstance(parent, VmdkImage) else None
    wanted = image.descriptor.parent_cid if image.descriptor else NO_PARENT
    if descriptor is not None and wanted not in (NO_PARENT, descriptor.cid):
        parent.close()
        raise damaged(
            image.file, "parentCID", f"is {wanted:x}, {path} has {descriptor.cid:x}: it was changed"
        )
    return parent


FORMAT = Format(open=_open)

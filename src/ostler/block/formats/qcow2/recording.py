"""The bitmaps of an image that is open for writing: what is written is marked in those that record.

As in QEMU, a bitmap that is changed in memory is marked as in use in the file, and stays so if the
process dies: nobody trusts it then. It is written back when the image is closed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostler.block.formats.qcow2.bitmaps import (
    EXTENSION,
    MAX_BITMAPS,
    MAX_DIRECTORY_BYTES,
    MAX_GRANULARITY_BITS,
    MIN_GRANULARITY_BITS,
    OFFSET_MASK,
    Bitmap,
    Flag,
    read_directory,
    read_table,
)
from ostler.block.formats.qcow2.header import BITMAPS, Autoclear
from ostler.engine.block import DirtyMap
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.image import Qcow2Image

MAX_NAME_BYTES = 1023
MAX_BYTES = 512 << 20
"""Of the bits of one bitmap, as QEMU limits it."""
MIN_DEFAULT_BYTES, MAX_DEFAULT_BYTES = 4096, 65536
"""A new bitmap's granularity is the image's cluster, within these."""


@dataclass(slots=True)
class Kept:
    """A bitmap, and its bits if they are in memory."""

    bitmap: Bitmap
    map: DirtyMap | None = None

    @property
    def is_inconsistent(self) -> bool:
        """Somebody who changed it did not save it."""
        return self.map is None and bool(self.bitmap.flags & Flag.IN_USE)

    @property
    def records(self) -> bool:
        """Writes are to be marked in it."""
        return bool(self.bitmap.flags & Flag.AUTO) and not self.is_inconsistent


class Recording:
    """All bitmaps of an open image."""

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.all = [Kept(bitmap) for bitmap in read_directory(image.file, image.header)]

    def begin(self) -> None:
        """Mark writes from now on."""
        self._hold([kept for kept in self.all if kept.records])
        self.attach()

    def attach(self) -> None:
        """Have the data path, which may be a new one, mark what is written."""
        maps = [kept.map for kept in self.all if kept.records and kept.map is not None]
        self.image.disk.record(maps)

    def find(self, name: str) -> Kept:
        """The bitmap called `name`."""
        for kept in self.all:
            if kept.bitmap.name == name:
                return kept
        there_is = ", ".join(kept.bitmap.name for kept in self.all) or "none"
        raise DiskError(f"{self.image.name}: there is no bitmap {name!r}; there is: {there_is}")

    def usable(self, name: str) -> tuple[Kept, DirtyMap]:
        """The bitmap called `name` with its bits, to be changed."""
        kept = self.find(name)
        if kept.is_inconsistent:
            raise DiskError(
                f"{self.image.name}: bitmap {name!r} was not saved by who changed it;"
                " remove it, and add it anew"
            )
        self._hold([kept])
        assert kept.map is not None
        return kept, kept.map

    def add(self, name: str, granularity: int | None = None, *, enabled: bool = True) -> None:
        """A bitmap of nothing written, that records if it is enabled."""
        image = self.image
        cluster = image.header.cluster_bytes
        granularity = granularity or min(max(cluster, MIN_DEFAULT_BYTES), MAX_DEFAULT_BYTES)
        self._check_new(name, granularity)
        bits = granularity.bit_length() - 1
        flags = Flag.AUTO if enabled else Flag(0)
        new = DirtyMap(image.size_bytes, bits, b"")
        self.all.append(Kept(Bitmap(0, 0, flags, bits, name), new))
        self.attach()

    def _check_new(self, name: str, granularity: int) -> None:
        image = self.image
        low, high = 1 << MIN_GRANULARITY_BITS, 1 << MAX_GRANULARITY_BITS
        if image.header.version < 3:
            raise DiskError(
                f"{image.name}: version 2 has no bitmaps; run: ostler image amend -o compat=1.1"
            )
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise DiskError(f"{image.name}: a bitmap's name is 1 to {MAX_NAME_BYTES} bytes long")
        if any(kept.bitmap.name == name for kept in self.all):
            raise DiskError(f"{image.name}: there is a bitmap {name!r} already; remove it first")
        if len(self.all) >= MAX_BITMAPS:
            raise DiskError(f"{image.name}: has {MAX_BITMAPS} bitmaps, the most; remove some")
        if granularity & (granularity - 1) or not low <= granularity <= high:
            raise DiskError(
                f"{image.name}: granularity {granularity} is not a power of two from 512 to 2G"
            )
        if image.size_bytes // granularity // 8 > MAX_BYTES:
            raise DiskError(f"{image.name}: bitmap {name!r} is too large; raise its granularity")

    def remove(self, name: str) -> None:
        """Forget a bitmap."""
        kept = self.find(name)
        self.all.remove(kept)
        self.attach()
        self._write(self._places(kept.bitmap))

    def clear(self, name: str) -> None:
        """Nothing was written, it says from now on."""
        self.usable(name)[1].clear()

    def enable(self, name: str) -> None:
        """Record writes from now on."""
        self.usable(name)[0].bitmap.flags |= Flag.AUTO
        self.attach()

    def disable(self, name: str) -> None:
        """Do not record writes any more."""
        self.usable(name)[0].bitmap.flags &= ~Flag.AUTO
        self.attach()

    def merge(self, name: str, other: DirtyMap) -> None:
        """Mark all that is marked in `other`."""
        target = self.usable(name)[1]
        if target.size_bytes != other.size_bytes:
            raise DiskError(
                f"{self.image.name}: cannot merge bitmaps of disks of {other.size_bytes} and"
                f" {target.size_bytes} bytes; resize one"
            )
        target.merge(other)

    def resize(self, size_bytes: int) -> None:
        """The disk is to be so long; what is new was not written."""
        for kept in self.all:
            if kept.is_inconsistent:
                raise DiskError(
                    f"{self.image.name}: bitmap {kept.bitmap.name!r} was not saved by who changed"
                    " it; remove it before you resize"
                )
        self._hold(self.all)
        for kept in self.all:
            assert kept.map is not None
            kept.map = DirtyMap(size_bytes, kept.bitmap.granularity_bits, kept.map.bits())
        self.attach()

    def save(self) -> None:
        """Write all that is in memory; the bitmaps are to be trusted again."""
        held = [kept for kept in self.all if kept.map is not None]
        if not held:
            return
        old = [place for kept in held for place in self._places(kept.bitmap)]
        self.image.disk.record([])
        for kept in held:
            self._store(kept)
            kept.map = None
        self._write(old)

    def _hold(self, wanted: list[Kept]) -> None:
        """Have the bits of bitmaps in memory; the file says that they are in use."""
        wanted = [kept for kept in wanted if kept.map is None]
        for kept in wanted:
            kept.map = read_map(self.image, kept.bitmap)
            kept.bitmap.flags |= Flag.IN_USE
        if wanted:
            self._write([])

    def _places(self, bitmap: Bitmap) -> list[tuple[int, int]]:
        """What a bitmap takes in the file: offsets and bytes."""
        if not bitmap.table_entries:
            return []
        cluster = self.image.header.cluster_bytes
        table = read_table(self.image.file, bitmap)
        clusters = [(entry & OFFSET_MASK, cluster) for entry in table if entry & OFFSET_MASK]
        return [(bitmap.table_offset, 8 * len(table)), *clusters]

    def _store(self, kept: Kept) -> None:
        """Write bits to new places; the directory does not name them yet."""
        assert kept.map is not None
        cluster, disk, file = self.image.header.cluster_bytes, self.image.disk, self.image.file
        bits = kept.map.bits()
        table = []
        for start in range(0, len(bits), cluster):
            part = bits[start : start + cluster]
            if not any(part):
                table.append(0)
                continue
            offset = disk.allocate(cluster)
            file.write(offset, part.ljust(cluster, b"\0"))
            table.append(offset)
        bitmap = kept.bitmap
        bitmap.table_entries = len(table)
        bitmap.table_offset = disk.allocate(8 * len(table)) if table else 0
        file.write(bitmap.table_offset, struct.pack(f">{len(table)}Q", *table))
        bitmap.flags &= ~Flag.IN_USE

    def _write(self, old: list[tuple[int, int]]) -> None:
        """A new directory, then the header that names it; then `old` is free."""
        image, header = self.image, self.image.header
        if BITMAPS in header.extensions:
            _, _, size, offset = EXTENSION.unpack(header.extensions[BITMAPS])
            old = [*old, (offset, size)]
        # One that was added and has no place yet comes with the next save.
        bitmaps = [kept.bitmap for kept in self.all if kept.bitmap.table_entries]
        packed = b"".join(bitmap.pack() for bitmap in bitmaps)
        if len(packed) > MAX_DIRECTORY_BYTES:
            raise DiskError(f"{image.name}: the names of its bitmaps are too long; remove some")
        if packed:
            offset = image.disk.allocate(len(packed))
            image.file.write(offset, packed)
            extension = EXTENSION.pack(len(bitmaps), 0, len(packed), offset)
            header.extensions[BITMAPS] = extension
            header.autoclear |= Autoclear.BITMAPS
        else:
            header.extensions.pop(BITMAPS, None)
            header.autoclear &= ~Autoclear.BITMAPS
        image.disk.settle()
        image.file.flush()
        image.write_header()
        for place in old:
            image.disk.release(*place)
        image.disk.settle()


def read_map(image: Qcow2Image, bitmap: Bitmap) -> DirtyMap:
    """The bits of a bitmap. `DiskError` when its table is not one of this disk."""
    cluster = image.header.cluster_bytes
    granules = -(-image.size_bytes // (1 << bitmap.granularity_bits))
    expected = -(-granules // (8 * cluster))
    if bitmap.table_entries != expected or expected * cluster > MAX_BYTES + cluster:
        raise DiskError(
            f"{image.name}: bitmap_table_size of bitmap {bitmap.name!r} is"
            f" {bitmap.table_entries}, not {expected}; the image is damaged"
        )
    parts = []
    for entry in read_table(image.file, bitmap):
        offset = entry & OFFSET_MASK
        if offset % cluster:
            raise DiskError(
                f"{image.name}: bitmap {bitmap.name!r} has a cluster at {offset:#x};"
                " the image is damaged"
            )
        zeroes = bytes(cluster) if not entry & 1 else b"\xff" * cluster
        part = image.file.read(offset, cluster).ljust(cluster, b"\0") if offset else zeroes
        parts.append(part)
    return DirtyMap(image.size_bytes, bitmap.granularity_bits, b"".join(parts))


def inherit(image: Qcow2Image) -> None:
    """Have the bitmaps that record go on in a new overlay: with all that those behind it mark."""
    from ostler.block.formats.qcow2 import Qcow2Image

    behind = image.backing
    if not isinstance(behind, Qcow2Image):
        return
    for bitmap in behind.bitmaps:
        if bitmap.flags & Flag.AUTO and bitmap.is_saved:
            map = find_map(behind, bitmap.name)
            image.record().add(bitmap.name, map.granularity_bytes)
            image.record().merge(bitmap.name, map)


def find_map(image: Qcow2Image, name: str) -> DirtyMap:
    """The bits of the bitmap called `name`, which is not changed."""
    for bitmap in image.bitmaps:
        if bitmap.name == name and bitmap.is_saved:
            return read_map(image, bitmap)
    there_is = ", ".join(each.name for each in image.bitmaps if each.is_saved)
    raise DiskError(
        f"{image.name}: there is no bitmap {name!r} that was saved; there is: {there_is or 'none'}"
    )

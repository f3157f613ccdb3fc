"""Internal snapshots: a copy of the L1 table each, and a table of them.

A crash leaves each change of them undone or done: `Qcow2Disk.exchange` writes all that changes to
places that are free, and then the header, at once.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from ostler.block.formats.qcow2.header import Header, l1_entries
from ostler.block.image import ImageFile, Snapshot, check_writable
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.image import Qcow2Image

FIXED = struct.Struct(">QIHHIIQII")
EXTRA = struct.Struct(">QQQ")
MAX_TABLE_BYTES = 64 << 20
MAX_EXTRA_BYTES = 1024
MAX_SNAPSHOTS = 65536
NO_ICOUNT = (1 << 64) - 1


class Entry(NamedTuple):
    """A snapshot as the table has it."""

    l1_offset: int
    l1_entries: int
    id: str
    name: str
    date_ns: int
    vm_clock_ns: int
    vm_state_bytes: int
    disk_bytes: int
    icount: int | None = None
    extra: bytes = b""
    """What a newer program has added."""

    @property
    def public(self) -> Snapshot:
        """The snapshot as a user sees it."""
        return Snapshot(
            self.id,
            self.name,
            self.disk_bytes,
            self.vm_state_bytes,
            self.date_ns,
            self.vm_clock_ns,
            self.icount,
        )

    def pack(self) -> bytes:
        """The entry, padded to a multiple of 8 bytes."""
        icount = NO_ICOUNT if self.icount is None else self.icount
        extra = EXTRA.pack(self.vm_state_bytes, self.disk_bytes, icount) + self.extra
        ident, name = (text.encode("utf-8", "surrogateescape") for text in (self.id, self.name))
        seconds, nanoseconds = divmod(self.date_ns, 10**9)
        fixed = FIXED.pack(
            self.l1_offset,
            self.l1_entries,
            len(ident),
            len(name),
            seconds,
            nanoseconds,
            self.vm_clock_ns,
            min(self.vm_state_bytes, 0xFFFFFFFF),
            len(extra),
        )
        packed = fixed + extra + ident + name
        return packed + bytes(-len(packed) % 8)


def read_table(file: ImageFile, header: Header) -> list[Entry]:
    """The snapshots of an image. `DiskError` when the table is damaged."""
    if not header.snapshot_count:
        return []
    if header.snapshots_offset % header.cluster_bytes:
        raise DiskError(f"{file.name}: snapshots_offset is not at a cluster; the image is damaged")
    raw = file.read(header.snapshots_offset, 1 << 20)
    entries, at = [], 0
    for _ in range(header.snapshot_count):
        if len(raw) - at < 1 << 17 and len(raw) < MAX_TABLE_BYTES and len(raw) >= 1 << 20:
            raw = file.read(header.snapshots_offset, MAX_TABLE_BYTES)
        entry, at = _parse(file.name, raw, at, header)
        entries.append(entry)
    return entries


def _parse(name: str, raw: bytes, at: int, header: Header) -> tuple[Entry, int]:
    if at + FIXED.size > len(raw):
        raise DiskError(f"{name}: the snapshot table is cut off; the image is damaged")
    fields = FIXED.unpack_from(raw, at)
    l1_offset, l1_entries, id_bytes, name_bytes, seconds, nanos, clock, state, extra_bytes = fields
    at += FIXED.size
    if extra_bytes > MAX_EXTRA_BYTES or at + extra_bytes + id_bytes + name_bytes > len(raw):
        raise DiskError(f"{name}: extra_data_size of a snapshot is {extra_bytes}; it is damaged")
    if l1_entries * 8 > 32 << 20 or l1_offset % header.cluster_bytes:
        raise DiskError(f"{name}: l1_table_offset or l1_size of a snapshot is damaged")
    extra = raw[at : at + extra_bytes]
    at += extra_bytes
    ident = raw[at : at + id_bytes].decode("utf-8", "surrogateescape")
    title = raw[at + id_bytes : at + id_bytes + name_bytes].decode("utf-8", "surrogateescape")
    at += id_bytes + name_bytes
    known = extra[: EXTRA.size].ljust(EXTRA.size, b"\xff")
    state_long, disk, icount = EXTRA.unpack(known)
    entry = Entry(
        l1_offset,
        l1_entries,
        ident,
        title,
        seconds * 10**9 + nanos,
        clock,
        state_long if len(extra) >= 8 else state,
        disk if len(extra) >= 16 else header.size,
        None if len(extra) < 24 or icount == NO_ICOUNT else icount,
        extra[EXTRA.size :],
    )
    return entry, at + -at % 8


def find(image: Qcow2Image, entries: list[Entry], name: str) -> Entry:
    """The snapshot with this id, or else this name."""
    for entry in entries:
        if entry.id == name:
            return entry
    for entry in entries:
        if entry.name == name:
            return entry
    there_is = ", ".join(entry.name for entry in entries)
    others = f"there is: {there_is}" if there_is else "it has none"
    raise DiskError(f"{image.name}: there is no snapshot {name!r}; {others}")


def _refuse_impossible(image: Qcow2Image) -> None:
    check_writable(image)
    if image.data_file is not None:
        raise DiskError(
            f"{image.name}: an image with an external data file has no internal snapshots;"
            " make an overlay"
        )


def create(image: Qcow2Image, entries: list[Entry], name: str, *, again: bool) -> Snapshot:
    """Keep the disk as it is now; under a name that another has only if it is `again`."""
    _refuse_impossible(image)
    if not name:
        raise DiskError(f"{image.name}: a snapshot needs a name; give it one")
    if not again and any(entry.name == name for entry in entries):
        raise DiskError(
            f"{image.name}: has a snapshot {name!r} already; delete it or give another name"
        )
    if len(entries) >= MAX_SNAPSHOTS:
        raise DiskError(f"{image.name}: has {MAX_SNAPSHOTS} snapshots, the most; delete some")
    if len(name.encode()) > 0xFFFF:
        raise DiskError(f"{image.name}: the name of the snapshot is too long; shorten it")
    image.disk.settle()
    l1 = image.disk.l1
    ident = str(max((int(e.id) for e in entries if e.id.isdecimal()), default=0) + 1)
    offset = image.disk.allocate(8 * len(l1))
    entry = Entry(offset, len(l1), ident, name, time.time_ns(), 0, 0, image.size_bytes)
    _exchange(image, [*entries, entry], copy_at=offset)
    entries.append(entry)
    return entry.public


def delete(image: Qcow2Image, entries: list[Entry], name: str) -> None:
    """Forget a snapshot."""
    _refuse_impossible(image)
    gone = find(image, entries, name)
    image.disk.settle()
    l1 = image.disk.read_l1(gone.l1_offset, gone.l1_entries)
    rest = [entry for entry in entries if entry is not gone]
    _exchange(image, rest, gone=l1, freed=(gone.l1_offset, 8 * gone.l1_entries))
    entries[:] = rest


def apply(image: Qcow2Image, entries: list[Entry], name: str) -> None:
    """Make the disk what it was. What was written since is lost, unless a snapshot keeps it."""
    _refuse_impossible(image)
    wanted = find(image, entries, name)
    if image.bitmaps:
        raise DiskError(
            f"{image.name}: has bitmaps, which do not know what a snapshot changes; remove them"
            " first: ostler image bitmap --remove"
        )
    image.disk.settle()
    old = image.disk.l1
    l1 = image.disk.read_l1(wanted.l1_offset, wanted.l1_entries)
    _exchange(image, entries, l1=l1, size_bytes=wanted.disk_bytes, gone=old)


def drop_state(image: Qcow2Image, entries: list[Entry]) -> None:
    """Forget the state of a machine that applying a snapshot left behind the disk's end.

    A longer disk would show it; the snapshot keeps it.
    """
    image.disk.settle()
    l1 = image.disk.l1
    needed = l1_entries(image.name, image.header, image.size_bytes)
    if any(l1[needed:]):
        shorter = l1[:needed] + [0] * (len(l1) - needed)
        _exchange(image, entries, l1=shorter, gone=l1)


def _exchange(
    image: Qcow2Image,
    entries: list[Entry],
    *,
    l1: list[int] | None = None,
    size_bytes: int | None = None,
    copy_at: int | None = None,
    gone: list[int] | None = None,
    freed: tuple[int, int] | None = None,
) -> None:
    """A new table of snapshots at a new place, and all that has to agree with it, at once."""
    header = image.header
    old = header.snapshots_offset, table_bytes(image.file, header)
    packed = b"".join(entry.pack() for entry in entries)
    offset = image.disk.allocate(len(packed)) if packed else 0
    if packed:
        image.file.write(offset, packed)
    size_bytes = image.size_bytes if size_bytes is None else size_bytes
    header.l1_offset = image.disk.exchange(
        l1=l1,
        size=size_bytes,
        copy_at=copy_at,
        gone=gone or [],
        snapshots=(offset, len(entries)),
        freed=[run for run in (old, freed) if run is not None],
    )
    header.l1_entries = len(image.disk.l1)
    header.size = image.size_bytes = size_bytes
    header.snapshots_offset, header.snapshot_count = offset, len(entries)


def table_bytes(file: ImageFile, header: Header) -> int:
    """The length of the table that the header names."""
    return sum(len(entry.pack()) for entry in read_table(file, header))

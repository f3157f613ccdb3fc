"""Changes of a disk's size."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ostler.block.formats.qcow2.header import l1_entries
from ostler.block.image import SECTOR_BYTES, check_writable
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.image import Qcow2Image


def resize(image: Qcow2Image, size_bytes: int) -> None:
    """Make the disk `size_bytes` long. What is cut off is gone; what is new reads as zeroes."""
    check_writable(image)
    if size_bytes % SECTOR_BYTES:
        raise DiskError(
            f"{image.name}: {size_bytes} bytes is not a multiple of {SECTOR_BYTES};"
            f" give {size_bytes + -size_bytes % SECTOR_BYTES}"
        )
    # What no table can hold is refused before anything changes.
    l1_entries(image.name, image.header, size_bytes)
    old = image.size_bytes
    if image.recording is not None:
        image.recording.resize(size_bytes)
    if size_bytes < old:
        _cut_off(image, size_bytes)
    elif size_bytes > old:
        image.drop_state()
    _set_size(image, size_bytes)
    if image.data_file is not None:
        image.data_file.truncate(size_bytes)
    if size_bytes > old:
        _hide_backing(image, old, size_bytes)


def _cut_off(image: Qcow2Image, size_bytes: int) -> None:
    """Give up the clusters behind the new end, and zero the rest of the last one."""
    cluster = image.header.cluster_bytes
    whole = size_bytes + -size_bytes % cluster
    if whole < image.size_bytes:
        image.disk.discard(whole, image.size_bytes - whole)
    part = min(whole, image.size_bytes) - size_bytes
    if part:
        image.disk.write_zeroes(size_bytes, part)
    image.disk.settle()


def _set_size(image: Qcow2Image, size_bytes: int) -> None:
    header = image.header
    needed = l1_entries(image.name, header, size_bytes)
    old = header.l1_offset, header.l1_entries
    if needed > header.l1_entries:
        _grow_l1(image, needed)
    header.size = size_bytes
    image.write_header()
    image.disk.use_l1(header.l1_offset, header.l1_entries, size_bytes)
    image.size_bytes = size_bytes
    if header.l1_offset != old[0]:
        image.disk.release(old[0], 8 * old[1])
        image.disk.settle()


def _grow_l1(image: Qcow2Image, entries: int) -> None:
    """A longer copy of the L1 table, which the header does not name yet."""
    image.disk.settle()
    l1 = image.disk.l1
    offset = image.disk.allocate(8 * entries)
    image.file.write(offset, struct.pack(f">{entries}Q", *l1, *[0] * (entries - len(l1))))
    image.disk.settle()
    image.file.flush()
    image.header.l1_offset, image.header.l1_entries = offset, entries


def _hide_backing(image: Qcow2Image, old: int, new: int) -> None:
    """What a longer backing image has behind the old end must not show up."""
    if image.backing is not None and image.backing.size_bytes > old:
        image.disk.write_zeroes(old, min(new, image.backing.size_bytes) - old)

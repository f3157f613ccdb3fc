"""Space for a range of a disk before it is written."""

from __future__ import annotations

from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.raw import RawImage
from ostler.block.image import Image, ImageFile
from ostler.errors import DiskError

PAGE_BYTES = 4096


def preallocate(image: Image, offset: int, length: int, how: str) -> None:
    """`metadata` maps the range, `falloc` also reserves its space, `full` writes it.

    The range must read as zeroes, as what a disk was just grown by does.
    """
    if how not in ("metadata", "falloc", "full"):
        raise DiskError(f"{image.name}: no preallocation {how!r}; there is: metadata, falloc, full")
    match image:
        case Qcow2Image():
            _preallocate_qcow2(image, offset, length, how)
        case RawImage() if how != "metadata":
            _fill(image.file, offset, length, how)
        case _:
            raise DiskError(f"{image.name}: format {image.format} has no preallocation {how}")


def _preallocate_qcow2(image: Qcow2Image, offset: int, length: int, how: str) -> None:
    image.disk.preallocate(offset, length)
    image.settle()
    where = image.data_file or image.file
    for extent in image.extents(offset, length):
        if extent.host_offset is None:
            continue
        if how != "metadata":
            _fill(where, extent.host_offset, extent.length, how)
        elif where.size_bytes < extent.host_offset + extent.length:
            # Not by its length: a guest may write behind that meanwhile.
            last = min(extent.length, PAGE_BYTES)
            where.write_zeroes(extent.host_offset + extent.length - last, last)


def _fill(file: ImageFile, offset: int, length: int, how: str) -> None:
    if how == "falloc":
        file.write_zeroes(offset, length, unmap=False)
        return
    zeroes = bytes(1 << 20)
    for at in range(offset, offset + length, len(zeroes)):
        file.write(at, zeroes[: offset + length - at])

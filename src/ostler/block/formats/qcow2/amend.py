"""Changes of what was chosen when an image was made: version, lazy refcounts, refcount width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ostler.block.choices import Choices
from ostler.block.formats.qcow2.create import Compat
from ostler.block.formats.qcow2.header import Autoclear, Compatible, Incompatible
from ostler.block.image import check_writable
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.image import Qcow2Image

PIECE_BYTES = 1 << 20


class AmendOptions(Choices):
    """What can be changed, by QEMU's names."""

    compat: Compat | None = None
    size: int | None = None
    refcount_bits: int | None = None
    lazy_refcounts: bool | None = None


def amend(image: Qcow2Image, options: AmendOptions) -> None:
    """Change the image; `DiskError` for what it cannot become, before anything was changed."""
    check_writable(image)
    version = {None: image.header.version, "0.10": 2, "v2": 2}.get(options.compat, 3)
    bits = options.refcount_bits or 1 << image.header.refcount_order
    _refuse_impossible(image, options, version, bits)
    if version > image.header.version:
        image.header.version = 3
        _rewrite(image)
    if bits != 1 << image.header.refcount_order:
        image.change_refcount_order(bits.bit_length() - 1)
    if options.lazy_refcounts is not None:
        _set_lazy(image, options.lazy_refcounts)
    if version < image.header.version:
        _downgrade(image)
    if options.size is not None and options.size != image.size_bytes:
        image.resize(options.size)


def _refuse_impossible(image: Qcow2Image, options: AmendOptions, version: int, bits: int) -> None:
    if bits & (bits - 1) or not 1 <= bits <= 64:
        raise DiskError(f"{image.name}: refcount_bits {bits} is not a power of two from 1 to 64")
    if options.size is not None and options.size < image.size_bytes:
        raise DiskError(f"{image.name}: would become smaller; run: ostler image resize --shrink")
    if version >= 3:
        return
    header = image.header
    newer = {
        "refcount_bits other than 16": bits != 16,
        "lazy_refcounts": bool(options.lazy_refcounts),
        "an external data file": header.incompatible & Incompatible.DATA_FILE,
        "extended L2 entries": header.incompatible & Incompatible.EXTENDED_L2,
        "zstd": header.incompatible & Incompatible.COMPRESSION,
        "bitmaps": header.autoclear & Autoclear.BITMAPS,
    }
    for what, is_there in newer.items():
        if is_there:
            raise DiskError(f"{image.name}: version 2 has no {what}; convert the image instead")
    for snapshot in image.snapshots:
        with image.view_snapshot(snapshot.id) as view:
            if next(_zero_runs(view), None) is not None:
                raise DiskError(
                    f"{image.name}: snapshot {snapshot.name} has zero clusters, which version 2"
                    " has not; delete it"
                )


def _set_lazy(image: Qcow2Image, lazy: bool) -> None:
    if image.header.version < 3:
        if lazy:
            raise DiskError(f"{image.name}: version 2 has no lazy_refcounts; add compat=1.1")
        return
    flag = Compatible.LAZY_REFCOUNTS
    compatible = image.header.compatible
    image.header.compatible = compatible | flag if lazy else compatible & ~flag
    _rewrite(image)


def _rewrite(image: Qcow2Image) -> None:
    """Have the file and the data path know the header as it is now."""
    image.disk.settle()
    image.write_header()
    image.reload()


def _downgrade(image: Qcow2Image) -> None:
    """Zero clusters become unallocated, or data where a backing image would show."""
    zeroes = bytes(PIECE_BYTES)
    for offset, length in list(_zero_runs(image)):
        if image.header.backing_file is None:
            image.discard(offset, length)
            continue
        for at in range(offset, offset + length, PIECE_BYTES):
            image.write(at, zeroes[: offset + length - at])
    header = image.header
    header.version = 2
    header.compatible, header.autoclear = Compatible(0), Autoclear(0)
    _rewrite(image)


def _zero_runs(image: Qcow2Image) -> Iterator[tuple[int, int]]:
    """Zero clusters: offset and length of each run."""
    offset = 0
    while offset < image.size_bytes:
        run, content, _ = image.disk.extent_at(offset, image.size_bytes - offset)
        if content == "zero":
            yield offset, run
        offset += run

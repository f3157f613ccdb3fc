"""Make one image read like others, in another format or place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ostler.block.chain import layers, resolve
from ostler.block.data_path import disk_of
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.qcow2.header import COMPRESSION_TYPES
from ostler.block.image import Image, Opening, create_image, open_with
from ostler.block.jobs.concat import Concatenated
from ostler.block.jobs.job import THREADS, Job, check_limit
from ostler.block.target import Target
from ostler.engine.block import DirtyMap, copy_disk
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.bitmaps import Flag

SPARSE_BYTES = 4096
Bitmaps = Literal["all", "sound"] | None


def convert(
    sources: Sequence[Image],
    target: str | os.PathLike[str],
    *,
    format: str = "raw",
    options: dict[str, Any] | None = None,
    compress: bool = False,
    sparse_bytes: int = SPARSE_BYTES,
    threads: int = THREADS,
    limit_bytes_s: int = 0,
    create: bool = True,
    target_is_zero: bool = False,
    unsafe: bool = True,
    direct: bool = False,
    salvage: bool = False,
    bitmaps: Bitmaps = None,
) -> Job[int]:
    """Write what the sources read as, one after the other, into the image `target`.

    Runs of `sparse_bytes` zeroes are left out; 0 writes everything. Without `create` the target
    has to be there, and is taken as it is. `limit_bytes_s` of 0 is no limit. Unless it is `unsafe`
    the target is on stable storage at the end; `direct` writes around the host's page cache. With
    `salvage` what cannot be read is zero in the target; the job's result is how many bytes that is.
    With `bitmaps` of `"all"` the source's are copied, too; with `"sound"` those that were not saved
    are left out.

    A new file has its name when all of it is there, and `.part` behind that before; what it
    replaces is there until then (`Target` says what is overwritten instead).
    """
    check_limit(limit_bytes_s)
    target, options = os.fspath(target), options or {}
    size = sum(source.size_bytes for source in sources)
    _refuse_same_file(sources, target, options.get("backing_file"))
    # All that can be refused is, before a target that exists is replaced.
    if compress:
        _refuse_compression(target, format, encrypted=options.get("encryption") is not None)
    maps = []
    if bitmaps is not None:
        maps = bitmaps_of(sources, target, format, skip=bitmaps == "sound")
    source = sources[0] if len(sources) == 1 else Concatenated(sources)
    place = Target(target, create=create)
    with place.begun():
        if create:
            create_image(place.now, size, format=format, **options)
        how = Opening(unsafe=unsafe, direct=direct, secret=options.get("secret"))
        image = open_with(place.now, format, how)
        try:
            compression = _compression(image) if compress else None
            if image.size_bytes < size:
                raise DiskError(f"{target}: is smaller than what it is to hold, {size} bytes")
            has_zeroes = target_is_zero or (create and starts_as_zero(image))
        except BaseException:
            image.close()
            raise

        def work(job: Job[int]) -> int:
            with place.finished(lasting=not unsafe), image:
                lost = copy_disk(
                    disk_of(source),
                    disk_of(image),
                    job.progress,
                    threads=threads,
                    sparse=sparse_bytes,
                    target_is_zero=has_zeroes,
                    compression=compression,
                    limit=limit_bytes_s,
                    salvage=salvage,
                )
                for name, flags, map in maps:
                    put_bitmap(image, name, flags, map)
                if not unsafe:
                    image.flush()
                return lost

        return Job("convert", size, work)


def bitmaps_of(
    sources: Sequence[Image], target: str, format: str, *, skip: bool
) -> list[tuple[str, Flag, DirtyMap]]:
    """The bitmaps of the source, which has to be one image, as a target can have them."""
    from ostler.block.formats.qcow2.bitmaps import Flag
    from ostler.block.formats.qcow2.recording import find_map

    if len(sources) != 1 or not isinstance(sources[0], Qcow2Image):
        raise DiskError("--bitmaps: only a single qcow2 image has bitmaps; leave it out")
    if format != Qcow2Image.format:
        raise DiskError(f"{target}: {format} has no bitmaps; leave --bitmaps out")
    found = []
    for bitmap in sources[0].bitmaps:
        if not bitmap.flags & Flag.IN_USE:
            found.append((bitmap.name, bitmap.flags, find_map(sources[0], bitmap.name)))
        elif not skip:
            raise DiskError(
                f"{sources[0].name}: bitmap {bitmap.name!r} was not saved by who changed it;"
                " give --skip-broken-bitmaps, or remove it"
            )
    return found


def put_bitmap(image: Image, name: str, flags: Flag, map: DirtyMap) -> None:
    """Add a bitmap to an image whose content is there already."""
    from ostler.block.formats.qcow2.bitmaps import Flag

    assert isinstance(image, Qcow2Image)
    bitmaps = image.record()
    bitmaps.add(name, map.granularity_bytes, enabled=bool(flags & Flag.AUTO))
    bitmaps.merge(name, map)


def _refuse_same_file(sources: Sequence[Image], target: str, backing: object) -> None:
    read = [layer.name for source in sources for layer in layers(source)]
    if backing is not None:
        read.append(resolve(str(backing), target))
    for name in read:
        if os.path.exists(name) and os.path.exists(target) and os.path.samefile(name, target):
            raise DiskError(f"{target}: is read by this conversion; give another target")


def _refuse_compression(name: str, format: str, *, encrypted: bool) -> None:
    if format != Qcow2Image.format:
        raise DiskError(f"{name}: {format} keeps nothing compressed; leave -c out")
    if encrypted:
        raise DiskError(f"{name}: what is encrypted is not compressed; leave -c out")


def _compression(image: Image) -> tuple[str, int]:
    assert isinstance(image, Qcow2Image)
    _refuse_compression(image.name, image.format, encrypted=image.cipher is not None)
    # What is packed ends anywhere.
    image.ends_whole = False
    return COMPRESSION_TYPES[image.header.compression], image.header.cluster_bytes


def starts_as_zero(image: Image) -> bool:
    """Whether a new image reads as zeroes: not if it is a device, or has something behind it.

    What was never written of a LUKS image decrypts to noise.
    """
    file = getattr(image, "file", None)
    return (
        image.format != "luks"
        and not getattr(file, "is_block_device", False)
        and len(list(layers(image))) == 1
    )

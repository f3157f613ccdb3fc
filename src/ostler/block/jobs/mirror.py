"""A copy of a disk in use that is the same as the disk when the job ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ostler.block.data_path import disk_of
from ostler.block.image import create_image, open_image
from ostler.block.jobs.job import Job
from ostler.block.jobs.passes import copy_passes, copy_rest
from ostler.engine.block import DirtyMap

if TYPE_CHECKING:
    from ostler.block.live import LiveImage

GRANULE_BITS = 16


def mirror(
    live: LiveImage, path: str, format: str, options: dict[str, Any], pivot: bool, limit: int
) -> Job[None]:
    """Copy the disk to a new image at `path`; with `pivot` it is used from then on."""
    size = live.image.size_bytes
    create_new(path, size, format, options)
    target = open_image(path, format=format, secret=options.get("secret"))
    dirty = DirtyMap(size, GRANULE_BITS, b"")
    with live.held():
        dirty.mark(0, size)
        live.disk.record([dirty])

    def work(job: Job[None]) -> None:
        source, copy = disk_of(live.image), disk_of(target)
        closed = target
        try:
            copy_passes(job, source, copy, dirty, target_is_zero=True, limit=limit)
            with live.held():
                copy_rest(job, source, copy, dirty)
                if pivot:
                    closed = live.image
                    live.use(target)
        finally:
            with live.held():
                live.disk.record([])
                closed.close()

    return Job("mirror", size, work)


def create_new(path: str, size: int, format: str, options: dict[str, Any]) -> None:
    """A new image; a file that is there already is not touched."""
    import os

    from ostler.errors import DiskError

    if os.path.exists(path):
        raise DiskError(f"{path}: is there already; give the path of a new file")
    create_image(path, size, format=format, **options)

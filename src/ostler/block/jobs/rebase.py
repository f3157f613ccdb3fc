"""Another backing image for an overlay."""

from __future__ import annotations

from ostler.block.chain import identity, open_backing, resolve
from ostler.block.data_path import disk_of
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.qcow2.header import BACKING_FORMAT
from ostler.block.image import BackingReference, Image, check_writable
from ostler.block.jobs.job import Job
from ostler.block.jobs.watched import Watched
from ostler.engine.block import BlockDisk, differing_run
from ostler.errors import DiskError


def set_backing(image: Qcow2Image, filename: str | None, format: str | None) -> None:
    """Write another backing file into the header; what the disk reads as may change."""
    check_writable(image)
    image.settle()
    header = image.header
    header.backing_file = filename
    header.extensions.pop(BACKING_FORMAT, None)
    if filename is not None and format is not None:
        header.extensions[BACKING_FORMAT] = format.encode()
    image.write_header()


def rebase(image: Qcow2Image, filename: str | None, format: str | None) -> Job[None]:
    """Give the image another backing file, or none, without changing what it reads as.

    What would change is copied into the image first. A job that is cancelled leaves the old one.
    """
    check_writable(image)
    new: Image | None = None
    if filename is not None:
        if identity(resolve(filename, image.name)) == identity(image.name):
            raise DiskError(f"{image.name}: cannot be behind itself; give another backing file")
        new = open_backing(image.name, BackingReference(filename, format), image.how)
        format = format or new.format

    def work(job: Job[None]) -> None:
        try:
            _copy_differences(image, new, job)
        finally:
            if new is not None:
                new.close()
        set_backing(image, filename, format)

    return Job("rebase", image.size_bytes, work)


def _copy_differences(image: Qcow2Image, new: Image | None, job: Job[None]) -> None:
    cluster = image.header.cluster_bytes
    old = None if image.backing is None else disk_of(image.backing)
    other = None if new is None else disk_of(new)
    watched = Watched(job)
    for extent in image.extents(0, image.size_bytes):
        offset = extent.offset
        while not extent.allocated and offset < extent.end:
            differs, run = _run(old, other, offset, extent.end - offset, cluster)
            if differs:
                image.write(offset, image.read(offset, run))
            offset += run
            watched.at(offset)
        watched.at(extent.end)


def _run(
    old: BlockDisk | None, new: BlockDisk | None, offset: int, limit: int, cluster: int
) -> tuple[bool, int]:
    """Whether what is behind the image changes at `offset`, and for how long that holds."""
    old_zero, old_run = _zero(old, offset, limit)
    new_zero, new_run = _zero(new, offset, limit)
    limit = min(old_run, new_run, limit)
    if old_zero and new_zero:
        return False, limit
    limit = min(limit, 1 << 20)
    # Runs end where clusters do, so that none is copied twice.
    limit = max(limit - (offset + limit) % cluster, 0) or limit
    if old is None or new is None:
        return True, limit
    return differing_run(old, new, offset, limit, cluster)


def _zero(disk: BlockDisk | None, offset: int, limit: int) -> tuple[bool, int]:
    there = 0 if disk is None else min(limit, disk.size_bytes - offset)
    if disk is None or there <= 0:
        return True, limit
    return disk.zero_at(offset, there)

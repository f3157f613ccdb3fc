"""Another backing image for an overlay."""

from __future__ import annotations

from ostler.block.chain import identity, open_backing, resolve
from ostler.block.data_path import disk_of
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.qcow2.header import BACKING_FORMAT
from ostler.block.image import BackingReference, Image, check_writable
from ostler.block.jobs.job import THREADS, Job
from ostler.engine.block import rebase_disk
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
            rebase_disk(
                image.disk,
                None if image.backing is None else disk_of(image.backing),
                None if new is None else disk_of(new),
                job.progress,
                cluster=image.header.cluster_bytes,
                threads=THREADS,
            )
        finally:
            if new is not None:
                new.close()
        set_backing(image, filename, format)

    return Job("rebase", image.size_bytes, work)

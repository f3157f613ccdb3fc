"""A copy of a disk in use that is the same as the disk when the job ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ostler.block.data_path import disk_of
from ostler.block.image import Image, Opening, create_image, open_with, remove_quietly
from ostler.block.jobs.convert import starts_as_zero
from ostler.block.jobs.job import Job
from ostler.block.jobs.passes import copy_passes, copy_rest
from ostler.engine.block import DirtyMap
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.live import LiveImage

GRANULE_BITS = 16


def mirror(
    live: LiveImage, path: str, format: str, options: dict[str, Any], pivot: bool, limit: int
) -> Job[None]:
    """Copy the disk to a new image at `path`; with `pivot` it is used from then on."""
    size = live.image.size_bytes
    # The guest goes on in it as it was told to use its disk. What outlives a throw-away overlay is
    # not thrown away with it.
    secret, unsafe = options.get("secret"), live.how.unsafe and live.has_name
    how = live.how._replace(secret=secret, unsafe=unsafe) if pivot else Opening(secret=secret)
    target = create_new(path, size, format, options, how)
    copy, is_zero = disk_of(target), starts_as_zero(target)
    dirty = DirtyMap(size, GRANULE_BITS, b"")
    with live.held():
        dirty.mark(0, size)
        live.disk.record([dirty])

    def work(job: Job[None]) -> None:
        before = live.image
        source = disk_of(before)
        try:
            copy_passes(job, source, copy, dirty, target_is_zero=is_zero, limit=limit)
            with live.held():
                copy_rest(job, source, copy, dirty)
                if pivot:
                    live.use(target)
                    live.how = how
        except BaseException:
            with live.held():
                live.disk.record([])
            with removed(path):
                target.close()
            raise
        with live.held():
            live.disk.record([])
        (before if pivot else target).close()

    return Job("mirror", size, work)


def create_new(path: str, size: int, format: str, options: dict[str, Any], how: Opening) -> Image:
    """A new image, opened as `how` says; a file that is there already is not touched."""
    if os.path.lexists(path):
        raise DiskError(f"{path}: is there already; give the path of a new file")
    return create_opened(path, size, format, options, how)


def create_opened(
    path: str, size: int, format: str, options: dict[str, Any], how: Opening
) -> Image:
    """An image made anew at `path` in place of what nobody uses, opened as `how` says."""
    create_image(path, size, format=format, **options)
    try:
        image = open_with(path, format, how)
        try:
            # Whether its file takes O_DIRECT is known once the engine has it.
            disk_of(image)
        except BaseException:
            image.close()
            raise
    except BaseException:
        remove_quietly(path)
        raise
    return image


@contextmanager
def removed(path: str) -> Iterator[None]:
    """At the end the file of a copy that is none is gone, so that a second try finds room."""
    try:
        yield
    finally:
        remove_quietly(path)

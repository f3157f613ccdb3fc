"""A copy of a disk in use as it was when the job began."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ostler.block.data_path import disk_of
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.image import Opening, remove_quietly
from ostler.block.jobs.convert import starts_as_zero
from ostler.block.jobs.job import Job
from ostler.block.jobs.mirror import GRANULE_BITS, create_opened
from ostler.block.target import rename_new
from ostler.engine.block import CopyProgress, DirtyMap
from ostler.errors import DiskError, HostError

if TYPE_CHECKING:
    from ostler.block.live import LiveImage


def backup(
    live: LiveImage,
    path: str,
    format: str,
    options: dict[str, Any],
    bitmap: str | None,
    limit: int,
) -> Job[None]:
    """Copy what the disk has now, or what a bitmap marks of it, to a new image at `path`."""
    size = live.image.size_bytes
    marks = None if bitmap is None else _marks(live, bitmap)
    if os.path.lexists(path):
        raise DiskError(f"{path}: is there already; give the path of a new file")
    # It has its name when it is a copy: whoever finds the file knows.
    part = f"{path}.part"
    # What a backup that was killed has left there is replaced, what is in use is refused.
    target = create_opened(part, size, format, options, Opening(secret=options.get("secret")))
    # Zeroes of an incremental backup hide what is behind it.
    is_zero = marks is None and starts_as_zero(target)
    progress = CopyProgress()
    with live.held():
        todo = _all_of(size) if marks is None else _copy_of(marks)
        running = live.disk.back_up(disk_of(target), todo, progress, target_is_zero=is_zero)
        if marks is not None:
            marks.clear()

    def work(job: Job[None]) -> None:
        try:
            try:
                with _told_of(part, live.disk.name):
                    running.run(limit=limit)
                target.flush()
            finally:
                with live.held():
                    live.disk.end_backup()
                target.close()
            rename_new(part, path, lasting=True)
        except BaseException:
            if marks is not None:
                marks.merge(todo)
            remove_quietly(part)
            raise

    return Job("backup", todo.dirty_bytes, work, progress)


@contextmanager
def _told_of(part: str, source: str) -> Iterator[None]:
    """What the host fails names the target, whose errors the engine tells as the source's."""
    try:
        yield
    except HostError as error:
        why = str(error).removeprefix(f"{source}: ")
        told = f"{part.removesuffix('.part')}: {source} cannot be copied there: {why}"
        raise HostError(told) from error


def _all_of(size: int) -> DirtyMap:
    todo = DirtyMap(size, GRANULE_BITS, b"")
    todo.mark(0, size)
    return todo


def _copy_of(marks: DirtyMap) -> DirtyMap:
    return DirtyMap(marks.size_bytes, marks.granularity_bytes.bit_length() - 1, marks.bits())


def _marks(live: LiveImage, bitmap: str) -> DirtyMap:
    """The bits of a bitmap of the image."""
    image = live.image
    if not isinstance(image, Qcow2Image):
        raise DiskError(f"{image.name}: images of format {image.format} have no bitmaps")
    with live.held():
        return image.record().usable(bitmap)[1]

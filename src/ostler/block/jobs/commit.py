"""What an overlay holds, written into the image behind it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from ostler.block.chain import identity, layers
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.image import Image, Resizable, open_with
from ostler.block.jobs.job import Job
from ostler.block.jobs.watched import Watched
from ostler.errors import DiskError

PIECE_BYTES = 1 << 20


def commit(
    image: Qcow2Image, base: str | None = None, *, drop: bool = False, limit_bytes_s: int = 0
) -> Job[None]:
    """Write what is in front of `base`, the next image behind unless given, into it.

    The base grows if the overlay is larger. Unless `drop`, an overlay directly on the base is
    emptied. Images between the two are left as they are, and are invalid afterwards.
    """
    if image.backing is None or image.backing_reference is None:
        raise DiskError(f"{image.name}: has no backing file to commit to; nothing is behind it")
    behind = [(layer.name, layer.format) for layer in list(layers(image))[1:]]
    depth = _depth(image, behind, base)

    def work(job: Job[None]) -> None:
        # The chain holds the base read-only and locked: it has to be let go first.
        image.detach_backing()
        try:
            with ExitStack() as stack:
                alone = replace(image.how, readonly=True, backing=False)
                between = [
                    stack.enter_context(open_with(name, format, alone))
                    for name, format in behind[:depth]
                ]
                target = stack.enter_context(open_with(*behind[depth], image.how))
                _grow(target, image.size_bytes)
                _write(image, [image, *between], target, Watched(job, limit_bytes_s))
                target.flush()
            if depth == 0 and not drop:
                image.disk.unmap_all()
        finally:
            image.attach_backing()

    return Job("commit", image.size_bytes, work)


def _depth(image: Qcow2Image, behind: list[tuple[str, str]], base: str | None) -> int:
    """How many images are between the overlay and the base."""
    if base is None:
        return 0
    for depth, (name, _) in enumerate(behind):
        if identity(name) == identity(base):
            return depth
    there_is = ", ".join(name for name, _ in behind)
    raise DiskError(f"{image.name}: {base} is not in its chain; there is: {there_is}")


def _grow(target: Image, size: int) -> None:
    if target.size_bytes >= size:
        return
    if not isinstance(target, Resizable):
        raise DiskError(f"{target.name}: is smaller than the overlay and cannot grow; convert it")
    target.resize(size)


def _write(image: Image, tops: list[Image], target: Image, watched: Watched) -> None:
    offset = 0
    while offset < image.size_bytes:
        held, zero, run, layer = _held(tops, offset, image.size_bytes - offset)
        if held and zero:
            target.write_zeroes(offset, run)
        elif held and layer is not None:
            run = min(run, PIECE_BYTES)
            target.write(offset, layer.read(offset, run))
        offset += run
        watched.at(offset)


def _held(tops: list[Image], offset: int, limit: int) -> tuple[bool, bool, int, Image | None]:
    """Whether an overlay holds what is at `offset`, as zeroes, how far that goes, and which."""
    for layer in tops:
        there = min(limit, layer.size_bytes - offset)
        if there <= 0:
            # Behind the end of a shorter layer there are zeroes.
            return True, True, limit, layer
        extent = next(iter(layer.extents(offset, there)))
        limit = extent.length
        if extent.allocated:
            return True, extent.zero, limit, layer
    return False, False, limit, None

"""What an overlay holds, written into the image behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ostler.block.chain import identity, layers
from ostler.block.data_path import disk_of
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.image import Image, Layered, Opening, Resizable, open_with
from ostler.block.jobs.job import THREADS, Job, check_limit
from ostler.engine.block import DirtyMap, copy_marked
from ostler.errors import DiskError

Names = Sequence[tuple[str, str]]
"""Images by name and format."""


def commit(
    image: Qcow2Image, base: str | None = None, *, drop: bool = False, limit_bytes_s: int = 0
) -> Job[None]:
    """Write what is in front of `base`, the next image behind unless given, into it.

    The base grows if the overlay is larger. Unless `drop`, an overlay directly on the base is
    emptied. Images between the two are left as they are, and are invalid afterwards.
    """
    check_limit(limit_bytes_s)
    behind = names_behind(image)
    depth = depth_of(image, behind, base)

    def work(job: Job[None]) -> None:
        # The chain holds the base read-only and locked: it has to be let go first.
        image.detach_backing()
        try:
            with over_base(image, behind[: depth + 1], image.how) as target:
                held = what_is_held(image, depth + 1)
                job.total_bytes = held.dirty_bytes
                copy_marked(
                    image.disk,
                    disk_of(target),
                    held,
                    job.progress,
                    threads=THREADS,
                    target_is_zero=False,
                    limit=limit_bytes_s,
                )
                target.flush()
            if depth == 0 and not drop:
                image.disk.unmap_all()
        finally:
            image.attach_backing()

    return Job("commit", image.size_bytes, work)


def names_behind(image: Image) -> Names:
    """The images behind, the next one first."""
    if not isinstance(image, Layered) or image.backing is None:
        raise DiskError(f"{image.name}: has no backing file to commit to; nothing is behind it")
    return [(layer.name, layer.format) for layer in list(layers(image))[1:]]


def depth_of(image: Image, behind: Names, base: str | None) -> int:
    """How many images are between the overlay and the base."""
    if base is None:
        return 0
    for depth, (name, _) in enumerate(behind):
        if identity(name) == identity(base):
            return depth
    there_is = ", ".join(name for name, _ in behind)
    raise DiskError(f"{image.name}: {base} is not in its chain; there is: {there_is}")


@contextmanager
def over_base(image: Qcow2Image, behind: Names, how: Opening) -> Iterator[Image]:
    """The last of `behind`, open for writing and as large as the image, with the others before it
    and the image in front, which is behind nothing before and after."""
    with ExitStack() as stack:
        target = stack.enter_context(open_with(*behind[-1], how._replace(readonly=False)))
        grow(target, image.size_bytes)
        put_over(stack, image, target, behind[:-1], how)
        yield target


def put_over(
    stack: ExitStack, image: Qcow2Image, target: Image, between: Names, how: Opening
) -> None:
    """Put what is `between` behind the image, and `target` behind that, until `stack` ends."""
    alone = how._replace(readonly=True, backing=False)
    below = target
    for name, format in reversed(between):
        layer = stack.enter_context(open_with(name, format, alone))
        assert isinstance(layer, Qcow2Image)
        put_behind(stack, layer, below)
        below = layer
    put_behind(stack, image, below)


def put_behind(stack: ExitStack, image: Qcow2Image, below: Image) -> None:
    """Have `below` behind the image until `stack` ends."""
    image.put_behind(below)
    stack.callback(image.put_behind, None)


def what_is_held(image: Image, depth: int) -> DirtyMap:
    """What the `depth` images in front hold, in the smallest unit that one of them allocates."""
    tops = list(layers(image))[:depth]
    bits = min(top.unit_bits for top in tops if isinstance(top, Qcow2Image))
    held = DirtyMap(image.size_bytes, bits, b"")
    for top in tops:
        there = min(top.size_bytes, image.size_bytes)
        for extent in top.extents(0, there):
            if extent.allocated:
                held.mark(extent.offset, extent.length)
        # Behind the end of a shorter image there are zeroes, whatever is behind it.
        held.mark(there, image.size_bytes - there)
    return held


def grow(target: Image, size: int) -> None:
    """Make the target at least `size` bytes long."""
    if target.size_bytes >= size:
        return
    if not isinstance(target, Resizable):
        raise DiskError(f"{target.name}: is smaller than the overlay and cannot grow; convert it")
    target.resize(size)

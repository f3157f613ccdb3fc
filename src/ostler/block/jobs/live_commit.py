"""What an overlay in use holds, written into an image behind it, which is used from then on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ostler.block.data_path import disk_of
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.image import Image, open_with
from ostler.block.jobs.commit import Names, depth_of, grow, names_behind, put_over, what_is_held
from ostler.block.jobs.job import Job
from ostler.block.jobs.passes import copy_passes, copy_rest
from ostler.block.live import as_qcow2
from ostler.engine.block import DirtyMap
from ostler.errors import OstlerError

if TYPE_CHECKING:
    from ostler.block.live import LiveImage


def commit(live: LiveImage, base: str | None, limit: int) -> Job[None]:
    """Write what is in front of `base` into it, and use it. Cancelled, the overlay is used on."""
    live.named()
    image = as_qcow2(live.image, "commit")
    behind = names_behind(image)
    behind = behind[: depth_of(image, behind, base) + 1]

    def work(job: Job[None]) -> None:
        name = image.name
        chain = _Chain(live, behind)
        with live.held():
            # What cannot be written out is an error of the overlay, which is used on.
            image.flush()
            try:
                target, dirty = chain.open_writable(image)
            except BaseException:
                chain.restore(name)
                raise
        try:
            source = live.image
            copy_passes(
                job, disk_of(source), disk_of(target), dirty, target_is_zero=False, limit=limit
            )
            with live.held():
                copy_rest(job, disk_of(source), disk_of(target), dirty)
                chain.go_on_in(target)
        except BaseException:
            with live.held():
                chain.restore(name)
            raise
        # The guest is in the base for good: whatever fails now concerns the overlay alone.
        chain.fronts.close()

    return Job("commit", image.size_bytes, work)


class _Chain:
    """The images of a commit: the overlay, those between, and the base, open for writing.

    The gate is closed whenever something of it changes.
    """

    def __init__(self, live: LiveImage, behind: Names) -> None:
        self.live, self.behind = live, behind
        self.fronts = ExitStack()
        self.base = ExitStack()
        self.front: Qcow2Image | None = None

    def open_writable(self, image: Qcow2Image) -> tuple[Image, DirtyMap]:
        """Open the chain anew, with the base for writing: the base, and what is to be copied."""
        live = self.live
        image.close()
        target = self.base.enter_context(
            open_with(*self.behind[-1], live.how._replace(readonly=False))
        )
        grow(target, image.size_bytes)
        front = self.fronts.enter_context(
            open_with(image.name, image.format, live.how._replace(backing=False))
        )
        assert isinstance(front, Qcow2Image)
        self.front = front
        put_over(self.fronts, front, target, self.behind[:-1], live.how)
        live.use(front)
        dirty = what_is_held(front, len(self.behind))
        live.disk.record([dirty])
        return target, dirty

    def go_on_in(self, target: Image) -> None:
        """Use the base alone."""
        self.live.disk.record([])
        self.live.use(target)

    def restore(self, name: str) -> None:
        """Use the overlay with its chain as it was; if that fails, every request does."""
        self.live.disk.record([])
        is_whole = False
        try:
            with self.base, self.fronts:
                if self.front is not None:
                    self.front.flush()
                is_whole = True
        except (OstlerError, OSError):
            if not is_whole:
                # The guest's last writes may be lost: it has to know.
                self.live.fail(name, "qcow2")
                raise
        self.live.go_back(name, "qcow2")

"""An image that changes its file, its chain or its format while a guest uses it.

The guest's requests go to `LiveImage.disk`, which stays; what serves them is exchanged while the
disk's gate is closed. Whenever this process dies, the images that the machine was started from, or
those it was last told to go on in, open and have all that was flushed:

- `overlay` makes its file stable before the guest writes to it;
- `commit` writes to the base only what the overlay in front of it holds, so the two together read
  the same at each instant; the guest goes on in the base when it is stable;
- `stream` copies into the overlay as the guest's own writes do; what is behind is forgotten when
  all of it is stable;
- `mirror` and `backup` write to another file, which is no copy before the job has ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ostler.block.chain import identity, layers
from ostler.block.data_path import disk_of
from ostler.block.failed import FailedImage
from ostler.block.image import (
    Closing,
    Image,
    Opening,
    Resizable,
    Snapshot,
    Snapshotting,
    create_image,
    local_name,
    open_with,
    remove_quietly,
)
from ostler.engine.block import LiveDisk
from ostler.errors import DiskError, OstlerError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.jobs.job import Job


class LiveImage(Closing):
    """`image`, in use, opened as `how` says; it is closed with this.

    Jobs return at once; wait for them, await or watch them, or cancel them. A disk does one at a
    time. `limit_bytes_s` of 0 is no limit.
    """

    def __init__(self, image: Image, how: Opening) -> None:
        self.image, self.how = image, how
        """The image that the guest reads and writes now."""
        self.disk = LiveDisk(image.name, disk_of(image))
        self.job: Job[Any] | None = None
        """What is being done, or was done last."""
        self._is_closed = False
        self.tell_size: Callable[[], object] = lambda: None
        """Set by the board: tells the guest's driver that the disk has another size."""

    @property
    def name(self) -> str:
        """The image's path or URL."""
        return self.image.name

    @property
    def files(self) -> list[str]:
        """The image and all behind it, by name."""
        return [layer.name for layer in layers(self.image)]

    def __repr__(self) -> str:
        job = f", {self.job!r}" if self.job is not None and self.job.running else ""
        return f"<LiveImage {self.name!r}, {self.image.format}{job}>"

    def overlay(self, path: str | os.PathLike[str]) -> None:
        """Go on in a new qcow2 image at `path`; what there is so far stays as it is, behind it.

        Bitmaps that record go on in the new image, and mark there what they did.
        """
        self._refuse_change()
        below = self.named()
        target = os.path.abspath(path)
        if os.path.exists(target):
            raise DiskError(f"{target}: is there already; give the path of a new file")
        try:
            create_image(
                target,
                below.size_bytes,
                backing_file=identity(below.name),
                backing_fmt=below.format,
            )
            with self.held():
                self.reopen(target, "qcow2")
                self._inherit_bitmaps(below)
        except BaseException:
            # Nobody uses it; a second try finds its place free.
            remove_quietly(target)
            raise

    def _inherit_bitmaps(self, below: Image) -> None:
        """Have the bitmaps of the image below go on in the new one, or else go on below."""
        from ostler.block.formats.qcow2 import Qcow2Image

        if below.format != Qcow2Image.format or not isinstance(self.image, Qcow2Image):
            return
        from ostler.block.formats.qcow2.recording import inherit

        try:
            inherit(self.image)
        except BaseException:
            self.reopen(below.name, below.format)
            raise

    def snapshot(self, name: str) -> Snapshot:
        """Keep the disk as it is now inside its image; no memory of the machine is kept."""
        self._refuse_two_jobs()
        image = self._snapshotting()
        with self.held():
            return image.snapshot(name)

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The internal snapshots of the image."""
        return self.image.snapshots if isinstance(self.image, Snapshotting) else ()

    def delete_snapshot(self, name: str) -> None:
        """Forget an internal snapshot, by its name or id, and free what only it needed."""
        self._refuse_two_jobs()
        image = self._snapshotting()
        with self.held():
            image.delete_snapshot(name)

    def apply_snapshot(self, name: str) -> None:
        """Refused: a guest that runs holds in memory what is on its disk."""
        raise DiskError(
            f"{self.name}: a guest that runs would mix what it remembers of the disk with snapshot"
            f" {name!r}; stop the machine, run: ostler image snapshot -a, and start it again"
        )

    def _snapshotting(self) -> Snapshotting:
        image = self.image
        if not isinstance(image, Snapshotting):
            raise DiskError(
                f"{image.name}: images of format {image.format} keep no snapshots; go on in an"
                " overlay instead"
            )
        return image

    def resize(self, size_bytes: int) -> None:
        """Make the disk longer, and tell the guest; what is new reads as zeroes."""
        self._refuse_change()
        image, old = self.image, self.disk.size_bytes
        # A LUKS file is grown by writing all that is new: a guest cannot wait for that.
        if not isinstance(image, Resizable) or image.format == "luks":
            raise DiskError(
                f"{image.name}: images of format {image.format} keep their size while they are"
                " used; stop the machine and run: ostler image resize"
            )
        if size_bytes < old:
            raise DiskError(
                f"{image.name}: a disk in use cannot shrink below its {old} bytes; shrink the"
                " guest's file systems, stop the machine and run: ostler image resize --shrink"
            )
        with self.held():
            try:
                image.resize(size_bytes)
            finally:
                # What grew before something failed can be used.
                self.use(image)
        self.tell_size()

    def commit(self, base: str | None = None, *, limit_bytes_s: int = 0) -> Job[None]:
        """Write what is in front of `base` into it, and go on in it; by default the next image."""
        from ostler.block.jobs.live_commit import commit

        return self.begin(lambda: commit(self, base, limit_bytes_s), limit_bytes_s)

    def stream(self, *, limit_bytes_s: int = 0) -> Job[None]:
        """Copy all that is behind the image into it, and go on without that."""
        from ostler.block.jobs.stream import stream

        return self.begin(lambda: stream(self, limit_bytes_s), limit_bytes_s)

    def mirror(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "qcow2",
        options: dict[str, Any] | None = None,
        pivot: bool = True,
        limit_bytes_s: int = 0,
    ) -> Job[None]:
        """Copy the disk to a new image at `path`; at the end it is the same, and stable.

        With `pivot` the guest goes on in it.
        """
        from ostler.block.jobs.mirror import mirror

        target = os.path.abspath(path)
        return self.begin(
            lambda: mirror(self, target, format, options or {}, pivot, limit_bytes_s), limit_bytes_s
        )

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "qcow2",
        options: dict[str, Any] | None = None,
        bitmap: str | None = None,
        limit_bytes_s: int = 0,
    ) -> Job[None]:
        """Copy the disk, as it is now, to a new image at `path`.

        With the name of a `bitmap` of the image, only what is marked there; it is cleared as of
        now, and a backup that fails marks all again. Give the backup before this one as
        `options={"backing_file": ..., "backing_fmt": ...}`, so that the new one is whole.
        """
        from ostler.block.jobs.backup import backup

        target = os.path.abspath(path)
        return self.begin(
            lambda: backup(self, target, format, options or {}, bitmap, limit_bytes_s),
            limit_bytes_s,
        )

    def begin(self, start: Callable[[], Job[Any]], limit_bytes_s: int = 0) -> Job[Any]:
        """Start a job unless there is one; `ConfigError` for a limit that is none."""
        from ostler.block.jobs.job import check_limit

        check_limit(limit_bytes_s)
        self._refuse_change()
        self.job = start()
        return self.job

    def _refuse_change(self) -> None:
        self._refuse_two_jobs()
        if isinstance(self.image, FailedImage):
            raise DiskError(f"{self.name}: could not be opened again; stop the machine")
        if self.image.readonly:
            raise DiskError(f"{self.name}: opened read-only; nothing of it changes")

    def _refuse_two_jobs(self) -> None:
        if self._is_closed:
            raise DiskError(
                f"{self.name}: the machine that used it has ended; start one, or use"
                " ostler.open_image"
            )
        if self.job is not None and self.job.running:
            raise DiskError(
                f"{self.name}: its {self.job.name} is not finished; wait for it or cancel it"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """No request is under way meanwhile; those that come wait."""
        self.disk.close_gate()
        try:
            yield
        finally:
            self.disk.open_gate()

    def use(self, image: Image) -> None:
        """Serve requests from another image, which is whoever's was used before to close."""
        self.disk.replace(disk_of(image))
        self.image = image

    def named(self) -> Image:
        """The image, if it can be opened again by its name."""
        if not self.has_name:
            raise DiskError(
                f"{self.name}: is a throw-away overlay without a file; leave overlay out"
            )
        return self.image

    @property
    def has_name(self) -> bool:
        """Whether there is a file of the image's name; a throw-away overlay has none."""
        path = local_name(self.name)
        return path is None or os.path.exists(path)

    def reopen(self, name: str | None = None, format: str | None = None) -> None:
        """Close the image and open another, or the same anew; if that fails, the same.

        The gate is closed. If not even that opens, every request fails from then on.
        """
        old = self.image
        # What cannot be written out is an error of the image that goes on being used.
        old.flush()
        try:
            old.close()
            self._open(name or old.name, format or old.format)
        except BaseException:
            self.go_back(old.name, old.format)
            raise

    def go_back(self, name: str, format: str) -> None:
        """Use an image again that was closed; if it does not open, every request fails."""
        try:
            self._open(name, format)
        except BaseException as error:
            self.fail(name, format)
            raise DiskError(
                f"{name}: cannot be opened again, so the guest gets errors; stop the machine:"
                f" {error}"
            ) from error

    def _open(self, name: str, format: str) -> None:
        image = open_with(name, format, self.how)
        try:
            self.use(image)
        except BaseException:
            image.close()
            raise

    def fail(self, name: str, format: str) -> None:
        """Have every request fail from now on."""
        self.use(FailedImage(name, format, self.disk.size_bytes))

    def close(self) -> None:
        """End what is being done and close the image; a second call does nothing."""
        if self.job is not None and self.job.running:
            self.job.cancel()
            with suppress(OstlerError):
                self.job.wait()
        self._is_closed = True
        self.image.close()


def as_qcow2(image: Image, verb: str) -> Qcow2Image:
    """The image, which is one of ours that has another behind it, and keeps no snapshots.

    A snapshot reads what is behind, too: it would change with that.
    """
    from ostler.block.formats.qcow2 import Qcow2Image

    if not isinstance(image, Qcow2Image) or image.backing is None:
        raise DiskError(f"{image.name}: nothing is behind it; there is nothing to {verb}")
    if image.snapshots:
        raise DiskError(
            f"{image.name}: its internal snapshots read what is behind it, and would change; stop"
            f" the machine and delete them (ostler image snapshot -d) to {verb}"
        )
    return image

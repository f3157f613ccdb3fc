"""What a disk image can do, and how one is opened or created.

An image has two layers. Underneath is an `ImageFile`: bytes somewhere, a local file or a server.
On it is an `Image`: the bytes a guest sees, in some format. Every image reads, writes and says
which extents it holds; what else one can do is a protocol that it satisfies:

    Image          read, write, flush, discard, write_zeroes, extents, close
    ├── HostFile       byte n of the disk is byte n of one host descriptor
    ├── Layered        content it does not hold comes from a backing image
    ├── Resizable      its size can change
    ├── Snapshotting   it keeps internal snapshots
    └── Inspectable    it has facts of its format to show

All offsets and lengths are in bytes. A range that leaves the disk is a `DiskError`, whoever asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from ostler.errors import DiskError

SECTOR_BYTES = 512

Buffer = bytes | bytearray | memoryview


class Extent(NamedTuple):
    """A run of bytes that an image or a file keeps in one way."""

    offset: int
    length: int
    allocated: bool
    """This layer decides the content; otherwise a backing image does, or it is zero."""
    zero: bool
    """The content, where this layer decides it, is known to read as zeroes."""
    host_offset: int | None = None
    """Where in the file below it the content is kept as it is, if anywhere."""
    compressed: bool = False

    @property
    def end(self) -> int:
        """The offset after the last byte."""
        return self.offset + self.length


class ImageFile(Protocol):
    """Where an image's bytes are: what a format stands on. See `transports/`."""

    name: str
    """What to call it in messages: a path or URL."""
    readonly: bool

    @property
    def size_bytes(self) -> int:
        """The bytes there are now."""

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes, fewer only where the file ends. `HostError` when the host fails."""

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; a file grows as needed."""

    def flush(self) -> None:
        """All that was written is on stable storage when this returns."""

    def truncate(self, size_bytes: int) -> None:
        """Make the file `size_bytes` long; what is new is zero. `DiskError` if it cannot."""

    def discard(self, offset: int, length: int) -> None:
        """Give the range back if that is possible; its content is undefined until written."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes, with `unmap` as a hole where that is possible."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the range consists of; a hole is `allocated=False, zero=True`."""

    def close(self) -> None:
        """Release it and its locks; a second call does nothing."""


ImageWriter = Callable[[ImageFile], None]
"""Replaces what a file holds with a new image; all that is to refuse was refused before."""


@runtime_checkable
class LocalDescriptor(Protocol):
    """An `ImageFile` that is an open descriptor of this host; -1 when closed."""

    fd: int


class Image(Protocol):
    """An open disk image."""

    name: str
    format: str
    size_bytes: int
    readonly: bool

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of the disk."""

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; it is on stable storage after the next `flush`."""

    def flush(self) -> None:
        """All that was written is on stable storage when this returns."""

    def discard(self, offset: int, length: int) -> None:
        """The range is not needed any more; what it reads as afterwards is the format's choice."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes, with `unmap` without keeping space for it."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What this layer holds of the range, in order, without gaps, neighbours merged."""

    def close(self) -> None:
        """Flush, release the files and their locks; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class HostFile(Image, Protocol):
    """An image whose byte n is byte n of the descriptor `fd`."""

    fd: int
    block_bytes: int
    """What the host writes without reading first: the disk's physical block."""


class BackingReference(NamedTuple):
    """What an image says of the one behind it: as written in it, so not resolved."""

    filename: str
    format: str | None


@runtime_checkable
class Layered(Image, Protocol):
    """An image that can have another behind it."""

    backing: Image | None
    """Opened read-only; `None` when there is none, or it was opened without."""
    backing_reference: BackingReference | None


@runtime_checkable
class Resizable(Image, Protocol):
    """An image whose disk can grow and shrink."""

    def resize(self, size_bytes: int) -> None:
        """Make the disk `size_bytes` long; what is new reads as zeroes."""


class Snapshot(NamedTuple):
    """An internal snapshot."""

    id: str
    name: str
    disk_bytes: int
    vm_state_bytes: int
    date_ns: int
    """When it was made, since the epoch."""
    vm_clock_ns: int
    icount: int | None = None


@runtime_checkable
class Snapshotting(Image, Protocol):
    """An image that keeps snapshots of itself."""

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """All there are, oldest first."""

    def snapshot(self, name: str, *, again: bool = False) -> Snapshot:
        """Keep the disk as it is now under `name`, which no other has unless it is to be `again`.

        Of two with a name the older one is found by it.
        """

    def apply_snapshot(self, name: str) -> None:
        """Make the disk what it was; `name` is a snapshot's name or id."""

    def delete_snapshot(self, name: str) -> None:
        """Forget a snapshot and free what only it needed."""


@runtime_checkable
class Inspectable(Image, Protocol):
    """An image with facts of its format to show, as `qemu-img info` has them."""

    def format_specific(self) -> dict[str, Any]:
        """Keys and values as QEMU's QAPI names them."""


class Closing:
    """`with` for anything that has a `close`."""

    def close(self) -> None:
        """Release what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Opening(NamedTuple):
    """How a format is to open an image."""

    readonly: bool = False
    backing: bool = True
    """Open the backing chain, too. Without, what is not allocated reads as zeroes."""
    probed: bool = False
    """The format was guessed from content that a guest may have written."""
    lock: bool = True
    """Take QEMU's locks. Without, another may write while we read."""
    unsafe: bool = False
    """A flush does not wait for stable storage: for images that are made anew if the host dies."""
    direct: bool = False
    """The guest's requests go around the host's page cache (O_DIRECT), where they are aligned."""
    repairing: bool = False
    """An image that is marked as damaged may be opened for writing."""
    secret: bytes | None = None
    """The passphrase of an encrypted image."""
    keyless: bool = False
    """Only facts are wanted: without `secret` an encrypted image opens, and its content does not
    read."""
    chain: tuple[str, ...] = ()
    """The images in front of this one, so that a loop is noticed."""


def open_image(
    path: str | PathLike[str],
    *,
    format: str | None = None,
    readonly: bool = False,
    backing: bool = True,
    lock: bool = True,
    unsafe: bool = False,
    repairing: bool = False,
    secret: bytes | None = None,
    direct: bool = False,
) -> Image:
    """Open the disk image at `path`, a file name or a URL, and lock it against other users.

    Without `format` the content says what it is. A disk that turns out to be raw is then guarded:
    a write that would make its first sector look like another format is refused, because the next
    one who opens it would believe it, and follow the file names in it.

    Raises `DiskError` when it is missing, in use, damaged, or of a format that is not `format`.
    """
    how = Opening(
        readonly=readonly,
        backing=backing,
        lock=lock,
        unsafe=unsafe,
        repairing=repairing,
        secret=secret,
        direct=direct,
    )
    return open_with(str(path), format, how)


def open_with(path: str, format: str | None, how: Opening) -> Image:
    """`open_image` with everything a format needs to open its backing image."""
    # Formats import the protocols above, so they are looked up when needed.
    from ostler.block.registry import find_format, open_file, probe

    file = open_file(path, readonly=how.readonly, lock=how.lock, direct=how.direct)
    try:
        if format is None:
            found, how = probe(file), how._replace(probed=True)
        else:
            found, how = find_format(format, path), how._replace(probed=False)
        return found.load().open(file, how)
    except BaseException:
        file.close()
        raise


def create_image(
    path: str | PathLike[str], size_bytes: int, *, format: str = "qcow2", **options: Any
) -> None:
    """Make a disk image of `size_bytes` that reads as zeroes, or as its backing image.

    `options` are the format's own, as `ostler image create -o help` lists them. A file that exists
    is replaced, as qemu-img does it; `DiskError` when it is in use, or there is no such image: then
    it is what it was. A file that was not there is not there after a failure either.
    """
    from ostler.block.registry import create_file, find_format

    kind = find_format(format, str(path)).load()
    if kind.prepare is None or kind.Options is None:
        raise DiskError(f"{path}: images of format {format} can be read, not created; use qcow2")
    if not 0 <= size_bytes < 1 << 63:
        raise DiskError(f"{path}: no file of this host has {size_bytes} bytes; give another size")
    write = kind.prepare(str(path), size_bytes, kind.parse_options(options))
    with removed_if_new(str(path)):
        file = create_file(str(path))
        try:
            write(file)
        finally:
            file.close()


@contextmanager
def removed_if_new(path: str) -> Iterator[None]:
    """After a failure no file is at `path` where there was none before."""
    local = local_name(path)
    was_there = local is None or os.path.lexists(local)
    try:
        yield
    except BaseException:
        if local is not None and not was_there:
            remove_quietly(local)
        raise


def remove_quietly(path: str | PathLike[str]) -> None:
    """Remove a file after a failure, which is what is told, whether this fails or not.

    It may not be there: on a file system that is read-only that is told as EROFS.
    """
    with suppress(OSError):
        os.unlink(path)


def check_range(image: Image, offset: int, length: int) -> None:
    """Fail unless the range is on the disk."""
    if offset < 0 or length < 0 or offset + length > image.size_bytes:
        raise DiskError(
            f"{image.name}: bytes {offset} to {offset + length} are not on a disk of"
            f" {image.size_bytes} bytes"
        )


def check_writable(image: Image) -> None:
    """Fail unless the image was opened for writing."""
    if image.readonly:
        raise DiskError(f"{image.name}: opened read-only; open it for writing")


def merge(extents: Iterator[Extent]) -> Iterator[Extent]:
    """The same extents with neighbours of one kind as one."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and _continues(last, extent):
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def _continues(last: Extent, extent: Extent) -> bool:
    if last[2:4] != extent[2:4] or last.compressed != extent.compressed:
        return False
    if last.host_offset is None or extent.host_offset is None:
        return last.host_offset is extent.host_offset
    return last.host_offset + last.length == extent.host_offset


def local_name(path: str) -> str | None:
    """The path of the local file that `path` names, or `None` if it is a URL of something else."""
    scheme, separator, rest = path.partition("://")
    if not separator or not scheme.replace("+", "").replace("-", "").isalnum():
        return path.removeprefix("file:")
    return rest if scheme == "file" else None

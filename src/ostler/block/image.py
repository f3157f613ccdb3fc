"""What a disk image can do, and how one is opened.

Every image has a size and can be closed. What else it can do is a protocol it satisfies: a
`HostFile` has the guest's bytes at the same offsets of one host file descriptor, so that the
engine's workers read and write it directly.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

SECTOR_BYTES = 512


class Image(Protocol):
    """An open disk image."""

    path: Path
    size_bytes: int
    readonly: bool

    def close(self) -> None:
        """Release the file and its locks."""

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


def open_image(path: Path | str, *, readonly: bool = False) -> HostFile:
    """Open the disk image at `path` and lock it against other users.

    Raises `DiskError` when it is missing, in use, or of a size no disk has.
    """
    # Formats import the protocols above, so they are looked up when needed.
    from ostler.block.formats.raw import RawImage

    return RawImage(Path(path), readonly=readonly)

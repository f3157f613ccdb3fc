"""What a disk in use becomes when its image cannot be opened again."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ostler.block.image import Buffer, Closing, Extent


class FailedImage(Closing):
    """An image that answers every request with EIO: nothing that is written is lost unnoticed."""

    readonly = True

    def __init__(self, name: str, format: str, size_bytes: int) -> None:
        self.name, self.format, self.size_bytes = name, format, size_bytes

    def _fail(self) -> OSError:
        return OSError(errno.EIO, f"{self.name}: could not be opened again; stop the machine")

    def read(self, offset: int, length: int) -> bytes:
        """Fail."""
        raise self._fail()

    def write(self, offset: int, data: Buffer) -> None:
        """Fail."""
        raise self._fail()

    def flush(self) -> None:
        """Fail."""
        raise self._fail()

    def discard(self, offset: int, length: int) -> None:
        """Fail."""
        raise self._fail()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Fail."""
        raise self._fail()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Fail."""
        raise self._fail()

    def close(self) -> None:
        """There is nothing to release."""

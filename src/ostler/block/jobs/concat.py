"""Several images as one disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from ostler.block.image import Buffer, Closing, Extent, Image, check_range
from ostler.errors import DiskError


class Concatenated(Closing):
    """The disks of several images, one after the other. To be read; the images stay open."""

    format = "concatenation"
    readonly = True

    def __init__(self, images: Sequence[Image]) -> None:
        self.images = images
        self.starts = [0, *accumulate(image.size_bytes for image in images)]
        self.size_bytes = self.starts.pop()
        self.name = "+".join(image.name for image in images)

    def _parts(self, offset: int, length: int) -> Iterator[tuple[Image, int, int, int]]:
        """Each image of a range with its start, and the offset and length in it."""
        check_range(self, offset, length)
        end = offset + length
        while offset < end:
            number = bisect_right(self.starts, offset) - 1
            image, start = self.images[number], self.starts[number]
            piece = min(end, start + image.size_bytes) - offset
            yield image, start, offset - start, piece
            offset += piece

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        return b"".join(image.read(at, n) for image, _, at, n in self._parts(offset, length))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What is zero, seen through all layers; everything else counts as data."""
        from ostler.block.chain import map_chain

        for image, start, at, n in self._parts(offset, length):
            for run in map_chain(image, at, n):
                yield Extent(start + run.start, run.length, allocated=True, zero=run.zero)

    def write(self, offset: int, data: Buffer) -> None:
        """Refused."""
        raise DiskError(f"{self.name}: several images as one disk can only be read")

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Refused."""
        raise DiskError(f"{self.name}: several images as one disk can only be read")

    def discard(self, offset: int, length: int) -> None:
        """Refused."""
        raise DiskError(f"{self.name}: several images as one disk can only be read")

    def flush(self) -> None:
        """There is nothing to flush."""

    def close(self) -> None:
        """The images are their owner's to close."""

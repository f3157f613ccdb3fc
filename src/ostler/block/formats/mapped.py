"""What read-only formats share: the guest's bytes are found through a map.

A format says with `locate` in which place the bytes at an offset are; reading and listing follow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Never

from ostler.block.image import Buffer, Closing, Extent, Image, Opening, check_range, merge
from ostler.block.source import ByteSource, read_field
from ostler.errors import DiskError


@dataclass(frozen=True, slots=True)
class Stored:
    """`length` guest bytes lie at `offset` of `source`, as they are."""

    length: int
    source: ByteSource
    offset: int
    field: str
    """What errors call the bytes: block 7, say."""


@dataclass(frozen=True, slots=True)
class Zero:
    """`length` guest bytes are zeros: `allocated` if the image says so, else for want of writes."""

    length: int
    allocated: bool


@dataclass(frozen=True, slots=True)
class Packed:
    """`length` guest bytes at `within` of the cluster that `key` names to the map's `unpack`."""

    length: int
    key: int
    within: int


@dataclass(frozen=True, slots=True)
class Inherited:
    """`length` guest bytes that a backing image has, or else zeros."""

    length: int


Place = Stored | Zero | Packed | Inherited


class PlaceMap(ABC):
    """Where `size_bytes` guest bytes are."""

    size_bytes: int

    @abstractmethod
    def locate(self, offset: int, limit: int) -> Place:
        """Where the guest's bytes at `offset` are: the place has 1 to `limit` of them."""

    def unpack(self, key: int) -> bytes:
        """The bytes of a compressed cluster."""
        raise NotImplementedError(f"{type(self).__name__} has no compressed clusters")


class MappedImage(PlaceMap, Closing):
    """An image that is read through a map. Subclasses set `size_bytes` and implement `locate`."""

    format: str
    readonly = True
    backing: Image | None = None

    def __init__(self, file: ByteSource) -> None:
        self.name = file.name
        self.file = file

    def read(self, offset: int, length: int) -> bytes:
        """The guest's bytes."""
        check_range(self, offset, length)
        end, parts = offset + length, []
        while offset < end:
            place = self.locate(offset, end - offset)
            parts.append(self._content(place, offset))
            offset += place.length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Which bytes this image holds, and where in its first file."""
        check_range(self, offset, length)
        return merge(self._extents(offset, offset + length))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        while offset < end:
            place = self.locate(offset, end - offset)
            yield self._extent(place, offset)
            offset += place.length

    def _extent(self, place: Place, offset: int) -> Extent:
        match place:
            case Stored(length, source, at):
                here = at if source is self.file else None
                return Extent(offset, length, allocated=True, zero=False, host_offset=here)
            case Zero(length, allocated):
                return Extent(offset, length, allocated, zero=True)
            case Packed(length):
                return Extent(offset, length, allocated=True, zero=False, compressed=True)
            case Inherited(length):
                return Extent(offset, length, allocated=False, zero=self.backing is None)

    def _content(self, place: Place, offset: int) -> bytes:
        match place:
            case Stored(length, source, at, field):
                return read_field(source, at, length, field)
            case Zero(length):
                return bytes(length)
            case Packed(length, key, within):
                return self.unpack(key)[within : within + length]
            case Inherited(length):
                return self._inherited(offset, length)

    def _inherited(self, offset: int, length: int) -> bytes:
        """The backing image's bytes; zeros beyond its end, or without one."""
        if self.backing is None:
            return bytes(length)
        there = max(0, min(length, self.backing.size_bytes - offset))
        return (self.backing.read(offset, there) if there else b"") + bytes(length - there)

    def write(self, offset: int, data: Buffer) -> None:
        """Refused."""
        self._refuse()

    def discard(self, offset: int, length: int) -> None:
        """Refused."""
        self._refuse()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Refused."""
        self._refuse()

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """Close the backing image and the file; a second call does nothing."""
        if self.backing is not None:
            self.backing.close()
        self.file.close()

    def _refuse(self) -> Never:
        raise read_only(self.name, self.format)


def read_only(name: str, format: str) -> DiskError:
    """The error for writing to an image of a format that is only read here."""
    return DiskError(
        f"{name}: images of format {format} can be read, not written; open it read-only, or"
        f" convert it: ostler image convert -O qcow2 {name} disk.qcow2"
    )


def require_readonly(file: ByteSource, format: str, how: Opening) -> None:
    """Fail when an image of a format that is only read here is opened for writing."""
    if not how.readonly:
        raise read_only(file.name, format)

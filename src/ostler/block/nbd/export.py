"""An image as an NBD server offers it: requests become calls of the image.

Images take requests of many threads at once. A `HostFile` is bypassed: its requests become system
calls on one descriptor.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ostler.block.image import Extent, HostFile, Image, Layered
from ostler.block.nbd.protocol import (
    BASE_ALLOCATION,
    BLOCK_BYTES_PREFERRED,
    DIRTY_BITMAP,
    STATE_DIRTY,
    STATE_HOLE,
    STATE_ZERO,
    Transmission,
)
from ostler.engine.block import DirtyMap
from ostler.errors import DiskError


class State(NamedTuple):
    """A run of bytes with one state of a context."""

    length: int
    flags: int


class RequestError(Exception):
    """A request that is answered with an error: an `errno` value and what it is about."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Export:
    """What clients know under `name`."""

    name: str
    image: Image
    description: str = ""
    readonly: bool = False
    preferred_block_bytes: int = BLOCK_BYTES_PREFERRED
    bitmaps: Mapping[str, DirtyMap] = field(default_factory=dict)
    """What clients may ask about as `qemu:dirty-bitmap:NAME`."""

    def __post_init__(self) -> None:
        self.readonly = self.readonly or self.image.readonly
        self.size_bytes = self.image.size_bytes
        fd = self.image.fd if isinstance(self.image, HostFile) else -1
        self.fd: int | None = fd if fd >= 0 else None
        """The descriptor that has the bytes as they are, if there is one."""

    @property
    def flags(self) -> Transmission:
        """What clients may ask for."""
        flags = Transmission.HAS_FLAGS | Transmission.SEND_DF | Transmission.SEND_CACHE
        # All connections work on one open image, so a flush on one covers what others wrote.
        flags |= Transmission.CAN_MULTI_CONN | Transmission.SEND_FLUSH
        if self.readonly:
            return flags | Transmission.READ_ONLY
        return flags | (
            Transmission.SEND_FUA | Transmission.SEND_TRIM | Transmission.SEND_WRITE_ZEROES
        )

    def check(self, offset: int, length: int, *, writes: bool) -> None:
        """Fail unless the range is in the export, and may be written if it is to be."""
        if writes and self.readonly:
            raise RequestError(errno.EPERM, "the export is read-only")
        if offset + length > self.size_bytes:
            code = errno.ENOSPC if writes else errno.EINVAL
            raise RequestError(code, f"the export ends at {self.size_bytes}")

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range that was checked."""
        return self.image.read(offset, length)

    def write(self, offset: int, data: memoryview, *, fua: bool) -> None:
        """Write, and with `fua` make it durable."""
        self._write(offset, data)
        if fua:
            self.image.flush()

    def _write(self, offset: int, data: memoryview) -> None:
        # A raw disk that was probed guards its first sector: that is the image's own business.
        if self.fd is None or offset < BLOCK_BYTES_PREFERRED:
            self.image.write(offset, data)
            return
        while data:
            done = os.pwrite(self.fd, data, offset)
            data, offset = data[done:], offset + done

    def flush(self) -> None:
        """Make all that was written durable."""
        self.image.flush()

    def trim(self, offset: int, length: int, *, fua: bool) -> None:
        """The client does not need the range."""
        self.image.discard(offset, length)
        if fua:
            self.image.flush()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool, fua: bool) -> None:
        """Make the range read as zeros."""
        self.image.write_zeroes(offset, length, unmap=unmap)
        if fua:
            self.image.flush()

    def cache(self, offset: int, length: int) -> None:
        """The client will read the range soon."""
        if self.fd is not None:
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_WILLNEED)

    @property
    def contexts(self) -> tuple[str, ...]:
        """What the state of blocks can be asked about."""
        return (BASE_ALLOCATION, *(DIRTY_BITMAP + name for name in self.bitmaps))

    def states(self, context: str, offset: int, length: int, limit: int) -> list[State]:
        """At most `limit` states of a context from `offset` on, neighbours merged."""
        if context == BASE_ALLOCATION:
            return self._allocation(offset, length, limit)
        map, end = self.bitmaps[context.removeprefix(DIRTY_BITMAP)], offset + length
        states: list[State] = []
        while offset < end and len(states) < limit:
            is_dirty, run = map.run_at(offset, end - offset)
            states.append(State(run, STATE_DIRTY if is_dirty else 0))
            offset += run
        return states

    def _allocation(self, offset: int, length: int, limit: int) -> list[State]:
        states: list[State] = []
        for extent in chain_extents(self.image, offset, length):
            flags = self._state(extent)
            if states and states[-1].flags == flags:
                states[-1] = State(states[-1].length + extent.length, flags)
            elif len(states) == limit:
                break
            else:
                states.append(State(extent.length, flags))
        return states

    def _state(self, extent: Extent) -> int:
        # A raw image answers for all of its bytes; what is a hole in its file is known to be zero.
        hole = not extent.allocated or (extent.zero and self.fd is not None)
        return (STATE_HOLE if hole else 0) | (STATE_ZERO if extent.zero else 0)


def bitmap_of(image: Image, name: str) -> DirtyMap:
    """The bits of a persistent bitmap, which follow what is written if the image is open for it."""
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.formats.qcow2.recording import find_map

    if not isinstance(image, Qcow2Image):
        raise DiskError(f"{image.name}: images of format {image.format} have no bitmaps")
    return find_map(image, name) if image.readonly else image.record().usable(name)[1]


def chain_extents(image: Image, offset: int, length: int) -> Iterator[Extent]:
    """The extents of a range, those of backing images where the image has nothing itself."""
    for extent in image.extents(offset, length):
        backing = image.backing if isinstance(image, Layered) else None
        if extent.allocated or backing is None:
            yield extent._replace(zero=extent.zero or not extent.allocated)
            continue
        there = max(0, min(extent.length, backing.size_bytes - extent.offset))
        if there:
            yield from chain_extents(backing, extent.offset, there)
        if there < extent.length:
            yield Extent(extent.offset + there, extent.length - there, allocated=False, zero=True)

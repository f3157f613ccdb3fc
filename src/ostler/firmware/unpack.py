"""Unpacks the payload of a bzImage: gzip, bzip2, lzma, xz, lz4 (legacy frames), zstd.

The last four bytes of a payload are its unpacked size (gzip's own trailer, appended by the kernel's
build for the others), so the output is bounded before a byte is unpacked. It comes in pieces that
go straight to where they belong: there is no second copy of a whole kernel. LZO is left to the
guest's own code.
"""

from __future__ import annotations

import bz2
import lzma
import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Protocol

from ostler.errors import KernelError
from ostler.firmware.lz4_blocks import Lz4Blocks
from ostler.firmware.plan import Buffer, Sink

SIZE_LIMIT = 1 << 30
MEMORY_LIMIT = 1 << 30
# What an ELF file's program headers have to lie in: no linker puts them elsewhere.
HEAD_BYTES = 64 << 10
INPUT_BYTES = 256 << 10
PIECE_BYTES = 1 << 20
ZSTD_WINDOW = 128 << 20
GZIP_MAGIC = b"\x1f\x8b\x08"


def is_gzip(image: memoryview) -> bool:
    """Whether the image begins as a gzip file does; those end with their unpacked size."""
    return bytes(image[: len(GZIP_MAGIC)]) == GZIP_MAGIC


def can_unpack(payload: memoryview) -> bool:
    """Whether the payload begins as one of the formats this module reads."""
    return _codec(payload) is not None


def unpack(payload: memoryview) -> memoryview:
    """What `payload` holds, for those who need all of it at once; errors as from `Packed`."""
    packed = Packed(payload)
    # Not a bytearray: memory that a damaged file only promises to fill is never touched.
    data = memoryview(mmap.mmap(-1, max(packed.size, 1)))[: packed.size]

    def store(offset: int, piece: Buffer) -> None:
        data[offset : offset + len(piece)] = piece

    packed.unpack(store)
    return data.toreadonly()


class Packed:
    """A payload and the `size` that it promises; `KernelError` when it is of no known format.

    Damage is found when the bytes are asked for, and is a `KernelError`, too.
    """

    def __init__(self, payload: memoryview) -> None:
        codec = _codec(payload)
        if codec is None or len(payload) < 8:
            raise KernelError("has a payload of unknown compression; use a stock kernel")
        self._name, open_codec = codec
        (self.size,) = struct.unpack_from("<I", payload, len(payload) - 4)
        if self.size > SIZE_LIMIT:
            raise KernelError(
                f"promises {self.size} bytes unpacked, over 1 GiB;"
                " the file is damaged, fetch it again"
            )
        self._codec = open_codec(payload, self.size)

    @cached_property
    def head(self) -> memoryview:
        """The first `HEAD_BYTES` or more, or all where there are fewer."""
        with _damage_named(self._name):
            return memoryview(self._codec.head()).toreadonly()[: self.size]

    def unpack(self, sink: Sink) -> None:
        """Hand everything to `sink`, piece by piece: in any order, perhaps on several threads.

        `KernelError` when the payload is damaged or not of the size it promises; some of it may
        have been handed out by then.
        """
        with _damage_named(self._name):
            got = self._codec.unpack(sink)
        if got != self.size:
            raise KernelError(
                f"unpacks to {got} bytes, its {self._name} payload promises {self.size};"
                " fetch it again"
            )


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """A `KernelError` instead of what a library says about damaged data."""
    try:
        yield
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise KernelError(f"has a damaged {name} payload ({error}); fetch it again") from None


class _Codec(Protocol):
    """A payload of which `size` bytes are expected."""

    def head(self) -> Buffer:
        """The first bytes, `HEAD_BYTES` or more, or all."""

    def unpack(self, sink: Sink) -> int:
        """Hand at most `size` bytes to `sink`; how many there are, or a number above `size`."""


class _Stream:
    """A format that is read from its beginning; `pieces(payload, most)` are of `most` bytes."""

    def __init__(
        self,
        pieces: Callable[[memoryview, int], Iterator[Buffer]],
        payload: memoryview,
        size: int,
    ) -> None:
        self._pieces, self._payload, self._size = pieces, payload, size

    def head(self) -> Buffer:
        head = bytearray()
        for piece in self._pieces(self._payload, HEAD_BYTES):
            head += piece
            if len(head) >= HEAD_BYTES:
                break
        return head

    def unpack(self, sink: Sink) -> int:
        offset = 0
        for piece in self._pieces(self._payload, PIECE_BYTES):
            if offset + len(piece) > self._size:
                return offset + len(piece)
            sink(offset, piece)
            offset += len(piece)
        return offset


def _gzip(payload: memoryview, most: int) -> Iterator[Buffer]:
    decompressor = zlib.decompressobj(wbits=31)
    for at in range(0, len(payload), INPUT_BYTES):
        waiting: Buffer = payload[at : at + INPUT_BYTES]
        while waiting and not decompressor.eof:
            yield decompressor.decompress(waiting, most)
            waiting = decompressor.unconsumed_tail
    yield decompressor.flush()
    if not decompressor.eof:
        raise EOFError("the stream is cut short")


class _Decompressor(Protocol):
    """What bz2's and lzma's decompression objects share."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: Buffer, max_length: int, /) -> bytes: ...


def _fed(decompressor: _Decompressor, payload: memoryview, most: int) -> Iterator[Buffer]:
    at = 0
    while not decompressor.eof:
        data = b""
        if decompressor.needs_input:
            if at >= len(payload):
                raise EOFError("the stream is cut short")
            data = bytes(payload[at : at + INPUT_BYTES])
            at += INPUT_BYTES
        yield decompressor.decompress(data, most)


def _bzip2(payload: memoryview, most: int) -> Iterator[Buffer]:
    return _fed(bz2.BZ2Decompressor(), payload, most)


def _lzma(payload: memoryview, most: int) -> Iterator[Buffer]:
    return _fed(lzma.LZMADecompressor(lzma.FORMAT_ALONE, MEMORY_LIMIT), payload, most)


def _xz(payload: memoryview, most: int) -> Iterator[Buffer]:
    return _fed(lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY_LIMIT), payload, most)


def _zstd(payload: memoryview, most: int) -> Iterator[Buffer]:
    import zstandard  # here, as it takes 7 ms to import and few kernels need it

    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    buffer = bytearray(most)
    try:
        # Without the size behind the frame, which the reader would take for another frame.
        with decompressor.stream_reader(payload[:-4]) as reader:
            while got := reader.readinto(buffer):
                yield memoryview(buffer)[:got]
    except zstandard.ZstdError as error:
        raise ValueError(error) from None


_CODECS: tuple[tuple[bytes, str, Callable[[memoryview, int], _Codec]], ...] = (
    (GZIP_MAGIC, "gzip", partial(_Stream, _gzip)),
    (b"BZh", "bzip2", partial(_Stream, _bzip2)),
    (b"\x5d\x00\x00", "lzma", partial(_Stream, _lzma)),
    (b"\xfd7zXZ\x00", "xz", partial(_Stream, _xz)),
    (Lz4Blocks.MAGIC, "lz4", Lz4Blocks),
    (b"\x28\xb5\x2f\xfd", "zstd", partial(_Stream, _zstd)),
)


def _codec(payload: memoryview) -> tuple[str, Callable[[memoryview, int], _Codec]] | None:
    start = bytes(payload[:8])
    return next(((name, codec) for magic, name, codec in _CODECS if start.startswith(magic)), None)

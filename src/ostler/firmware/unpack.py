"""Unpacks the payload of a bzImage: gzip, bzip2, lzma, xz, lz4 (legacy frames), zstd.

The last four bytes of a payload are its unpacked size (gzip's own trailer, appended by the kernel's
build for the others), so the output is bounded before a byte is unpacked. LZO is left to the
guest's own code.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Protocol

import lz4.block

from ostler.errors import KernelError

SIZE_LIMIT = 1 << 30
MEMORY_LIMIT = 1 << 30
LZ4_BLOCK = 8 << 20
ZSTD_WINDOW = 128 << 20
GZIP_MAGIC = b"\x1f\x8b\x08"


def is_gzip(image: memoryview) -> bool:
    """Whether the image begins as a gzip file does; those end with their unpacked size."""
    return bytes(image[: len(GZIP_MAGIC)]) == GZIP_MAGIC


def can_unpack(payload: memoryview) -> bool:
    """Whether the payload begins as one of the formats this module reads."""
    return _reader(payload) is not None


def unpack(payload: memoryview) -> memoryview:
    """What `payload` holds; `KernelError` when it is damaged or not of the size it promises."""
    reader = _reader(payload)
    if reader is None or len(payload) < 8:
        raise KernelError("has a payload of unknown compression; use a stock kernel")
    name, read = reader
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if size > SIZE_LIMIT:
        raise KernelError(
            f"promises {size} bytes unpacked, over 1 GiB; the file is damaged, fetch it again"
        )
    try:
        data = read(payload, size)
    except (
        zlib.error,
        lzma.LZMAError,
        lz4.block.LZ4BlockError,
        OSError,
        EOFError,
        ValueError,
    ) as error:
        raise KernelError(f"has a damaged {name} payload ({error}); fetch it again") from None
    if len(data) != size:
        raise KernelError(
            f"unpacks to {len(data)} bytes, its {name} payload promises {size}; fetch it again"
        )
    return memoryview(data)


class _Decompressor(Protocol):
    """What zlib's, bz2's and lzma's decompression objects share."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...


def _stream(decompressor: _Decompressor, payload: memoryview, size: int) -> bytes:
    """At most one byte more than `size`; `EOFError` when the stream has no end."""
    data = decompressor.decompress(payload, size + 1)
    if len(data) <= size and not decompressor.eof:
        raise EOFError("the stream is cut short")
    return data


def _gzip(payload: memoryview, size: int) -> bytes:
    return _stream(zlib.decompressobj(wbits=31), payload, size)


def _bzip2(payload: memoryview, size: int) -> bytes:
    return _stream(bz2.BZ2Decompressor(), payload, size)


def _lzma(payload: memoryview, size: int) -> bytes:
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_ALONE, MEMORY_LIMIT), payload, size)


def _xz(payload: memoryview, size: int) -> bytes:
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, MEMORY_LIMIT), payload, size)


def _zstd(payload: memoryview, size: int) -> bytes:
    import zstandard  # here, as it takes 7 ms to import and few kernels need it

    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    try:
        with decompressor.stream_reader(payload) as reader:
            return reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise ValueError(error) from None


def _lz4(payload: memoryview, size: int) -> bytes:
    """Blocks of at most 8 MiB, each behind its packed size (`lz4 -l`)."""
    blocks: list[bytes] = []
    at, end, left = 4, len(payload) - 4, size
    while at < end and left:
        if at + 4 > end:
            raise ValueError("a block's size is cut short")
        (packed,) = struct.unpack_from("<I", payload, at)
        at += 4
        if packed > end - at:
            raise ValueError(f"a block ends {packed - (end - at)} bytes past the payload")
        block = lz4.block.decompress(
            payload[at : at + packed], uncompressed_size=min(left, LZ4_BLOCK)
        )
        # Only the last block is short; without this check a file of tiny blocks would take hours.
        if len(block) != min(left, LZ4_BLOCK):
            raise ValueError(f"a block unpacks to {len(block)} bytes")
        blocks.append(block)
        left -= len(block)
        at += packed
    return b"".join(blocks)


_MAGICS: tuple[tuple[bytes, str, Callable[[memoryview, int], bytes]], ...] = (
    (GZIP_MAGIC, "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\x00\x00", "lzma", _lzma),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)


def _reader(
    payload: memoryview,
) -> tuple[str, Callable[[memoryview, int], bytes]] | None:
    start = bytes(payload[:8])
    return next(((name, read) for magic, name, read in _MAGICS if start.startswith(magic)), None)

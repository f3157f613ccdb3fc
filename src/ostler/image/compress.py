"""Compression of an initramfs in the forms that the kernel's unpackers take.

Each is the form of `usr/gen_initramfs.sh` and `scripts/Makefile.lib` of Linux: gzip without a time,
xz with a CRC32 (the kernel knows no other check), lz4 in the legacy frame.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable

import lz4.block
import zstandard

from ostler.errors import ConfigError

LZ4_LEGACY_MAGIC = 0x184C_2102
LZ4_LEGACY_BLOCK_BYTES = 8 << 20


def compress(data: bytes, how: str) -> bytes:
    """`data` in the form that `how` names, one of `COMPRESSIONS`; the same input, the same bytes.

    Raises:
        ConfigError: `how` is not one of them.
    """
    packer = _PACKERS.get(how)
    if packer is None:
        raise ConfigError(f"compression {how!r} is unknown; take one of {', '.join(COMPRESSIONS)}")
    return packer(data)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, compresslevel=6, mtime=0)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=9).compress(data)


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)


def _lz4(data: bytes) -> bytes:
    packed = bytearray(LZ4_LEGACY_MAGIC.to_bytes(4, "little"))
    for start in range(0, len(data), LZ4_LEGACY_BLOCK_BYTES):
        block = lz4.block.compress(data[start : start + LZ4_LEGACY_BLOCK_BYTES], store_size=False)
        packed += len(block).to_bytes(4, "little") + block
    return bytes(packed)


_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gzip,
    "zstd": _zstd,
    "xz": _xz,
    "lz4": _lz4,
    "none": bytes,
}

COMPRESSIONS = tuple(_PACKERS)
"""Names that `compress` takes."""

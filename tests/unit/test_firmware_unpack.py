"""Payload decompression: every format, and what damaged ones give."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import struct
from collections.abc import Callable

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ostler.errors import KernelError
from ostler.firmware import lz4_blocks, unpack


def sized(packed: bytes, data: bytes) -> bytes:
    return packed + struct.pack("<I", len(data))


def pack_lz4(data: bytes) -> bytes:
    packed = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), lz4_blocks.BLOCK_BYTES):
        block = lz4.block.compress(data[at : at + lz4_blocks.BLOCK_BYTES], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return sized(packed, data)


def pack_xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return sized(lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters), data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": lambda data: sized(bz2.compress(data), data),
    "lzma": lambda data: sized(lzma.compress(data, lzma.FORMAT_ALONE), data),
    "xz": pack_xz,
    "lz4": pack_lz4,
    "zstd": lambda data: sized(zstandard.compress(data), data),
}
# Calls with addresses in them, which the x86 filter of xz rewrites.
MACHINE_CODE = b"".join(b"\xe8" + struct.pack("<i", n * 31) + b"\x90" * 7 for n in range(3000))
NOISE = random.Random(7).randbytes(20_000)


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("data", [b"\x7fELF", MACHINE_CODE, NOISE], ids=["tiny", "code", "noise"])
def test_unpack_each_format_gives_the_bytes_back(name: str, data: bytes) -> None:
    payload = memoryview(PACKERS[name](data))
    assert unpack.can_unpack(payload)
    assert bytes(unpack.unpack(payload)) == data


def test_unpack_lz4_of_several_blocks_gives_the_bytes_back() -> None:
    data = MACHINE_CODE * 500
    assert len(data) > 2 * lz4_blocks.BLOCK_BYTES
    assert bytes(unpack.unpack(memoryview(pack_lz4(data)))) == data


@pytest.mark.parametrize("name", PACKERS)
@given(cut=st.floats(0, 1, exclude_max=True), keep_size=st.booleans())
def test_unpack_cut_short_anywhere_is_a_kernel_error(
    name: str, cut: float, keep_size: bool
) -> None:
    whole = PACKERS[name](NOISE)
    cut_at = int(cut * (len(whole) - 8))
    short = whole[:cut_at] + (whole[-4:] if keep_size else b"")
    with pytest.raises(KernelError) as caught:
        unpack.unpack(memoryview(short))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PACKERS)
@given(seed=st.integers(0, 1 << 32))
def test_unpack_damaged_bytes_never_raise_anything_else(name: str, seed: int) -> None:
    rng = random.Random(seed)
    payload = bytearray(PACKERS[name](MACHINE_CODE[:4000]))
    for _ in range(rng.randrange(1, 5)):
        payload[rng.randrange(len(payload))] = rng.randrange(256)
    try:
        data = unpack.unpack(memoryview(payload))
    except KernelError:
        return
    assert len(data) <= unpack.SIZE_LIMIT


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("wrong", [-1, 1])
def test_unpack_other_size_than_promised_is_a_kernel_error(name: str, wrong: int) -> None:
    payload = PACKERS[name](MACHINE_CODE)[:-4] + struct.pack("<I", len(MACHINE_CODE) + wrong)
    with pytest.raises(KernelError, match="fetch it again"):
        unpack.unpack(memoryview(payload))


@pytest.mark.parametrize("name", PACKERS)
def test_unpack_promise_over_the_limit_is_refused_unread(name: str) -> None:
    payload = PACKERS[name](b"x")[:-4] + struct.pack("<I", unpack.SIZE_LIMIT + 1)
    with pytest.raises(KernelError, match="over 1 GiB"):
        unpack.unpack(memoryview(payload))


def test_unpack_lz4_of_tiny_blocks_stops_at_the_first() -> None:
    block = lz4.block.compress(b"x", store_size=False)
    payload = b"\x02\x21\x4c\x18" + (struct.pack("<I", len(block)) + block) * 1_000_000
    with pytest.raises(KernelError, match="damaged lz4"):
        unpack.unpack(memoryview(payload + struct.pack("<I", 1_000_000)))


def test_unpack_lzo_is_left_to_the_guest() -> None:
    lzo = memoryview(b"\x89LZO\0\r\n\x1a\n" + bytes(32))
    assert not unpack.can_unpack(lzo)
    with pytest.raises(KernelError, match="unknown compression"):
        unpack.unpack(lzo)

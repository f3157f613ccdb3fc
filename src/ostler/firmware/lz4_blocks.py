"""LZ4's legacy frame, as `lz4 -l` writes it and kernels are packed.

A magic number, then blocks of 8 MiB (the last one shorter), each behind its packed size. No block
needs another, so they are unpacked on several threads.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from ostler.firmware.plan import Buffer, Sink

BLOCK_BYTES = 8 << 20
# Beyond that many, threads wait for memory more than for a processor.
MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class Block:
    """`packed` holds the `size` bytes at `offset` of the whole."""

    packed: memoryview
    offset: int
    size: int


class Lz4Blocks:
    """A payload of which `size` bytes are expected; `ValueError` when it is damaged."""

    MAGIC: ClassVar = b"\x02\x21\x4c\x18"

    def __init__(self, payload: memoryview, size: int) -> None:
        self._payload, self._size = payload, size

    def head(self) -> Buffer:
        """The first block."""
        return self._first

    @cached_property
    def _first(self) -> bytes:
        first = next(_blocks(self._payload, self._size), None)
        return b"" if first is None else _unpack(first)

    def unpack(self, sink: Sink) -> int:
        """Hand the blocks to `sink`, in any order and on several threads; how many bytes."""
        blocks = list(_blocks(self._payload, self._size))

        def hand_over(block: Block) -> None:
            sink(block.offset, _unpack(block) if block.offset else self._first)

        _on_threads(blocks, hand_over)
        return sum(block.size for block in blocks)


def _blocks(payload: memoryview, size: int) -> Iterator[Block]:
    at, end = len(Lz4Blocks.MAGIC), len(payload) - 4  # the unpacked size comes last
    for offset in range(0, size, BLOCK_BYTES):
        if at == end:
            return
        if at + 4 > end:
            raise ValueError("a block's size is cut short")
        (packed,) = struct.unpack_from("<I", payload, at)
        at += 4
        if packed > end - at:
            raise ValueError(f"a block ends {packed - (end - at)} bytes past the payload")
        yield Block(payload[at : at + packed], offset, min(size - offset, BLOCK_BYTES))
        at += packed


def _unpack(block: Block) -> bytes:
    import lz4.block  # here, as not every kernel is packed so

    try:
        data: bytes = lz4.block.decompress(block.packed, uncompressed_size=block.size)
    except lz4.block.LZ4BlockError as error:
        raise ValueError(error) from None
    # Only the last block is short; without this check a file of tiny blocks would take hours.
    if len(data) != block.size:
        raise ValueError(f"a block unpacks to {len(data)} bytes")
    return data


def _on_threads(blocks: Iterable[Block], act: Callable[[Block], object]) -> None:
    """`act` on every block, on this thread and a few more; the first failure is raised here."""
    left = deque(blocks)
    failures: list[BaseException] = []

    def take() -> Block | None:
        try:
            return left.popleft()
        except IndexError:
            return None

    def work() -> None:
        try:
            while not failures and (block := take()) is not None:
                act(block)
        except BaseException as error:
            failures.append(error)

    count = min(len(left), MAX_THREADS, len(os.sched_getaffinity(0)))
    threads = [threading.Thread(target=work, name="unpack") for _ in range(1, count)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]

"""Many requests of one size on an open image, timed."""

from __future__ import annotations

import os
import time

from ostler.block.data_path import disk_of
from ostler.block.image import Image
from ostler.engine.block import bench_disk

MAX_THREADS = 64
"""That wait for a disk at once, as many as QEMU has."""


def bench(
    image: Image,
    *,
    count: int,
    length: int,
    offset: int = 0,
    step: int | None = None,
    pattern: int | None = None,
    flush_every: int = 0,
    depth: int = 1,
) -> float:
    """Seconds for `count` reads, or writes of the byte `pattern`, each `length` bytes."""
    start = time.perf_counter()
    bench_disk(
        disk_of(image),
        count=count,
        length=length,
        offset=offset,
        step=length if step is None else step,
        pattern=pattern,
        flush_every=flush_every,
        threads=threads_of(image, depth),
    )
    return time.perf_counter() - start


def threads_of(image: Image, depth: int) -> int:
    """How many make requests: more than there are processors where each waits for a disk."""
    file = getattr(image, "file", image)
    most = MAX_THREADS if getattr(file, "direct", False) else os.cpu_count() or 1
    return min(depth, most)

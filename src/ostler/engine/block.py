"""The data path of disk images: what `ostler.block` moves bytes with.

`BlockDisk` is what a guest sees of an image, `Qcow2Disk` one that finds it through qcow2's tables,
`BlockStorage` where an image's bytes are. Any `Image` or `ImageFile` that is written in Python can
take part: `from_image`, `from_file`. Nothing here knows of machines.
"""

from __future__ import annotations

from ostler._native import (
    BlockDisk,
    BlockStorage,
    CopyProgress,
    DirtyMap,
    Qcow2Disk,
    bench_disk,
    compare_disks,
    copy_disk,
    differing_run,
)

__all__ = [
    "BlockDisk",
    "BlockStorage",
    "CopyProgress",
    "DirtyMap",
    "Qcow2Disk",
    "bench_disk",
    "compare_disks",
    "copy_disk",
    "differing_run",
]

"""The data path of disk images: what `ostler.block` moves bytes with.

`BlockDisk` is what a guest sees of an image, `Qcow2Disk` one that finds it through qcow2's tables,
`BlockStorage` where an image's bytes are, `LiveDisk` one whose
image is exchanged while a guest uses it. Any `Image` or `ImageFile` that is written in Python can
take part: `from_image`, `from_file`. Nothing here knows of machines.
"""

from __future__ import annotations

from ostler._native import (
    BlockBackup,
    BlockDisk,
    BlockStorage,
    CopyProgress,
    DirtyMap,
    LiveDisk,
    Qcow2Disk,
    bench_disk,
    compare_disks,
    copy_disk,
    copy_marked,
    data_bytes,
    map_json,
    map_layers,
    rebase_disk,
)

__all__ = [
    "BlockBackup",
    "BlockDisk",
    "BlockStorage",
    "CopyProgress",
    "DirtyMap",
    "LiveDisk",
    "Qcow2Disk",
    "bench_disk",
    "compare_disks",
    "copy_disk",
    "copy_marked",
    "data_bytes",
    "map_json",
    "map_layers",
    "rebase_disk",
]

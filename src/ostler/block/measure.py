"""How much space an image will take, before it is made."""

from __future__ import annotations

from ostler.block.chain import map_chain, native_chain
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.qcow2.create import Options, check_options
from ostler.block.image import SECTOR_BYTES, Image
from ostler.engine.block import data_bytes
from ostler.errors import DiskError


def measure(image: Image | None, size_bytes: int, format: str, options: Options) -> tuple[int, int]:
    """Bytes that a new image takes with what `image` holds, if anything, and when it is full."""
    if format == "raw":
        return size_bytes, size_bytes
    if format != "qcow2":
        raise DiskError(f"cannot measure images of format {format}; there is: raw, qcow2")
    check_options("measure", options)
    cluster = options.cluster_size
    size = size_bytes + -size_bytes % SECTOR_BYTES
    full = _tables(size, options) + size + -size % cluster
    if options.preallocation in ("falloc", "full"):
        return full, full
    data = 0 if image is None else _data_bytes(image, cluster)
    return full - (size + -size % cluster) + data, full


def _data_bytes(image: Image, cluster: int) -> int:
    """What the clusters take that hold anything but zeroes."""
    if (chain := native_chain(image)) is not None:
        return data_bytes(chain, cluster)
    total = end = 0
    for run in map_chain(image):
        if run.zero:
            continue
        first = max(run.start // cluster, end)
        end = max(end, -(-(run.start + run.length) // cluster))
        total += max(0, end - first)
    return total * cluster


def bitmaps_bytes(image: Image | None, format: str, options: Options) -> int | None:
    """Bytes that the bitmaps of `image` take in a new image, as QEMU counts them: all clusters.

    `None` where one of the two cannot have any. Those that were not saved are not counted.
    """
    if format != "qcow2" or options.version < 3 or not isinstance(image, Qcow2Image):
        return None
    if image.header.version < 3:
        return None
    cluster = options.cluster_size
    total = directory = 0
    for bitmap in image.bitmaps:
        if not bitmap.is_saved:
            continue
        bits = -(-image.size_bytes // (1 << bitmap.granularity_bits))
        clusters = -(-bits // (8 * cluster))
        table = 8 * clusters
        total += clusters * cluster + table + -table % cluster
        directory += bitmap.entry_bytes
    return total + directory + -directory % cluster


def _tables(size: int, options: Options) -> int:
    """Header, L2, L1 and refcounts for a disk whose every cluster is there, as QEMU counts them."""
    cluster = options.cluster_size
    entry = 16 if options.extended_l2 else 8
    clusters = -(-size // cluster)
    l2_entries = clusters + -clusters % (cluster // entry)
    l1_entries = l2_entries * entry // cluster
    l1_entries += -l1_entries % (cluster // 8)
    tables = cluster + l2_entries * entry + l1_entries * 8
    used = tables // cluster + clusters
    per_block, per_table = cluster * 8 // options.refcount_bits, cluster // 8
    blocks = table = 0
    while True:
        more = -(-(used + table + blocks) // per_block)
        if (more, -(-more // per_table)) == (blocks, table):
            return tables + (blocks + table) * cluster
        blocks, table = more, -(-more // per_table)

"""A new qcow2 image: header, refcounts and an empty L1 table, written front to back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from ostler.block.crypto.options import LuksOptions
from ostler.block.formats.qcow2.header import (
    BACKING_FORMAT,
    DATA_FILE,
    Autoclear,
    Compatible,
    Header,
    Incompatible,
    l1_entries,
)
from ostler.block.image import SECTOR_BYTES, ImageFile, ImageWriter
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.encryption import NewLuks

Compat = Literal["1.1", "v3", "0.10", "v2"]


class Options(LuksOptions):
    """What can be chosen, by QEMU's names.

    `preallocation`: `metadata` maps every cluster, `falloc` also reserves its space, `full` writes
    it. With `encryption` the others of LUKS count.
    """

    compat: Compat = "1.1"
    cluster_size: int = 65536
    refcount_bits: int = 16
    lazy_refcounts: bool = False
    extended_l2: bool = False
    compression_type: Literal["zlib", "zstd"] = "zlib"
    preallocation: Literal["off", "metadata", "falloc", "full"] = "off"
    backing_file: str | None = None
    backing_fmt: str | None = None
    data_file: str | None = None
    data_file_raw: bool = False
    encryption: Literal["luks"] | None = None

    @property
    def version(self) -> int:
        """The version of the format."""
        return 2 if self.compat in ("0.10", "v2") else 3


def prepare(name: str, size_bytes: int, options: Options) -> ImageWriter:
    """What writes an empty image of `size_bytes`, which are rounded up to sectors.

    `DiskError` for options or a size that no image has.
    """
    check_options(name, options)
    header = _header(name, size_bytes + -size_bytes % SECTOR_BYTES, options)
    luks = None
    if options.encryption is not None:
        from ostler.block.formats.qcow2 import encryption

        luks = encryption.new(name, options)
    blocks = _lay_out(header, 0 if luks is None else luks.clusters(header))
    if blocks + 3 > 1 << 20:
        raise DiskError(f"{name}: a disk of this size needs larger clusters; raise cluster_size")
    header.pack()
    return _NewImage(options, header, blocks, luks).write


class _NewImage(NamedTuple):
    """An image that can be, and is to be written."""

    options: Options
    header: Header
    blocks: int
    luks: NewLuks | None

    def write(self, file: ImageFile) -> None:
        """Replace what the file holds."""
        header, blocks, options = self.header, self.blocks, self.options
        if options.data_file:
            _create_data_file(file.name, header.size, options)
        cluster = header.cluster_bytes
        file.truncate(0)
        end = header.l1_offset + -(-8 * header.l1_entries // cluster) * cluster
        file.truncate(end)
        if self.luks is not None:
            self.luks.write(file, header, end)
        used = file.size_bytes // cluster
        file.write(header.refcount_table_offset, _refcount_table(header, blocks))
        file.write(_first_block(header), _refcount_blocks(header, blocks, used))
        file.write(0, header.pack())
        if options.preallocation != "off":
            _preallocate(file, header.size, options.preallocation)


def check_options(name: str, options: Options) -> None:
    """`DiskError` for a combination that no image has."""
    size, bits = options.cluster_size, options.refcount_bits
    if size & (size - 1) or not 512 <= size <= 2 << 20:
        raise DiskError(f"{name}: cluster_size {size} is not a power of two from 512 to 2M")
    if bits & (bits - 1) or not 1 <= bits <= 64:
        raise DiskError(f"{name}: refcount_bits {bits} is not a power of two from 1 to 64")
    if options.extended_l2 and size < 16384:
        raise DiskError(f"{name}: extended_l2 needs a cluster_size of 16k or more; give 128k")
    if options.data_file_raw and not options.data_file:
        raise DiskError(f"{name}: data_file_raw needs a data_file; give its name")
    if options.data_file and options.backing_file and options.data_file_raw:
        raise DiskError(f"{name}: a raw data_file cannot have a backing file; leave one out")
    if options.backing_fmt and not options.backing_file:
        raise DiskError(f"{name}: backing_fmt needs a backing_file; give its name")
    if options.encryption is not None:
        options.check(name)
        if options.preallocation != "off":
            raise DiskError(f"{name}: an encrypted image is not preallocated; leave that out")
    elif options.secret:
        raise DiskError(f"{name}: a passphrase is for encrypted images; add encryption=luks")
    if options.version == 2:
        _check_version_2(name, options)


def _check_version_2(name: str, options: Options) -> None:
    newer = {
        "lazy_refcounts": options.lazy_refcounts,
        "refcount_bits": options.refcount_bits != 16,
        "extended_l2": options.extended_l2,
        "compression_type": options.compression_type != "zlib",
        "data_file": options.data_file is not None,
        "encryption": options.encryption is not None,
    }
    for option, given in newer.items():
        if given:
            raise DiskError(f"{name}: {option} is not in version 2 (compat=0.10); give compat=1.1")


def _header(name: str, size: int, options: Options) -> Header:
    header = Header(
        version=options.version,
        cluster_bits=options.cluster_size.bit_length() - 1,
        size=size,
        refcount_order=options.refcount_bits.bit_length() - 1,
        backing_file=options.backing_file,
    )
    if options.lazy_refcounts:
        header.compatible |= Compatible.LAZY_REFCOUNTS
    if options.extended_l2:
        header.incompatible |= Incompatible.EXTENDED_L2
    if options.compression_type == "zstd":
        header.incompatible |= Incompatible.COMPRESSION
        header.compression = 1
    if options.backing_fmt:
        header.extensions[BACKING_FORMAT] = options.backing_fmt.encode()
    if options.data_file:
        header.incompatible |= Incompatible.DATA_FILE
        header.extensions[DATA_FILE] = options.data_file.encode()
        header.autoclear |= Autoclear.RAW_DATA_FILE if options.data_file_raw else Autoclear(0)
    header.l1_entries = l1_entries(name, header, size)
    return header


def _lay_out(header: Header, more: int) -> int:
    """Place the tables: header, refcount table and blocks, L1, and `more` clusters behind them. How
    many blocks there are."""
    cluster = header.cluster_bytes
    per_block = cluster * 8 >> header.refcount_order
    l1_clusters = -(-8 * header.l1_entries // cluster)
    blocks = table = 1
    while True:
        total = 1 + table + blocks + l1_clusters + more
        needed = -(-total // per_block)
        clusters = -(-8 * needed // cluster)
        if (needed, clusters) <= (blocks, table):
            break
        blocks, table = max(blocks, needed), max(table, clusters)
    header.refcount_table_offset = cluster
    header.refcount_table_clusters = table
    header.l1_offset = (1 + table + blocks) * cluster
    return blocks


def _first_block(header: Header) -> int:
    return header.refcount_table_offset + header.refcount_table_clusters * header.cluster_bytes


def _refcount_table(header: Header, blocks: int) -> bytes:
    first = _first_block(header)
    return b"".join(
        (first + number * header.cluster_bytes).to_bytes(8, "big") for number in range(blocks)
    )


def _refcount_blocks(header: Header, blocks: int, used: int) -> bytes:
    """Blocks in which the first `used` clusters are counted once."""
    order = header.refcount_order
    if order >= 3:
        ones = (1).to_bytes(1 << (order - 3), "big") * used
    else:
        # The first entry is the lowest bits of its byte.
        bits = 1 << order
        ones = sum(1 << bits * number for number in range(used)).to_bytes(
            -(-used * bits // 8), "little"
        )
    return ones.ljust(blocks * header.cluster_bytes, b"\0")


def _create_data_file(name: str, size: int, options: Options) -> None:
    from ostler.block.chain import resolve
    from ostler.block.registry import create_file

    assert options.data_file is not None
    data = create_file(resolve(options.data_file, name))
    try:
        data.truncate(0)
        data.truncate(size)
    finally:
        data.close()


def _preallocate(file: ImageFile, size: int, how: str) -> None:
    """Map every cluster of a new image."""
    from ostler.block.formats.qcow2.image import Qcow2Image
    from ostler.block.image import Opening
    from ostler.block.preallocate import preallocate

    image = Qcow2Image(file, Opening(backing=False, unsafe=True))
    preallocate(image, 0, size, how)
    if image.data_file is not None:
        image.data_file.close()

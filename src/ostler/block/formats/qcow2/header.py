"""The header of a qcow2 image and its extensions (QEMU's docs/interop/qcow2).

Reading takes nothing for granted: each field is checked, and an error names it.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import Any, NamedTuple

from ostler.block.image import ImageFile
from ostler.errors import DiskError

MAGIC = b"QFI\xfb"
V2 = struct.Struct(">4sIQIIQIIQQIIQ")
V3 = struct.Struct(">QQQII")
V3_BYTES = V2.size + V3.size
COMPRESSION_BYTES = 8

EXTENSION = struct.Struct(">II")
END, BACKING_FORMAT, FEATURE_NAMES = 0, 0xE2792ACA, 0x6803F857
BITMAPS, ENCRYPTION, DATA_FILE = 0x23852875, 0x0537BE77, 0x44415441

MAX_NAME_BYTES = 1023
MAX_SNAPSHOTS = 65536
MAX_L1_BYTES = 32 << 20
CRYPT_METHODS = ("none", "aes", "luks")
COMPRESSION_TYPES = ("zlib", "zstd")


class Incompatible(IntFlag):
    """What a program must know to read an image."""

    DIRTY = 1
    CORRUPT = 2
    DATA_FILE = 4
    COMPRESSION = 8
    EXTENDED_L2 = 16


class Compatible(IntFlag):
    """What a program may ignore."""

    LAZY_REFCOUNTS = 1


class Autoclear(IntFlag):
    """What a program that writes clears, unless it keeps it true."""

    BITMAPS = 1
    RAW_DATA_FILE = 2


_NAMES = {
    (0, 0): "dirty bit",
    (0, 1): "corrupt bit",
    (0, 2): "external data file",
    (0, 3): "compression type",
    (0, 4): "extended L2 entries",
    (1, 0): "lazy refcounts",
    (2, 0): "bitmaps",
    (2, 1): "raw external data",
}


class Layout(NamedTuple):
    """What the data path needs to know; it checks what it is given."""

    version: int
    cluster_bits: int
    refcount_order: int
    size: int
    l1_offset: int
    l1_entries: int
    refcount_table_offset: int
    refcount_table_clusters: int
    extended_l2: bool
    zstd: bool
    external_data: bool
    lazy_refcounts: bool
    incompatible: int


class Header:
    """All that is in the first cluster. Offsets and sizes in bytes, entries where named so.

    No dataclass: to import and use these takes longer than to read an image's header.
    """

    version: int = 3
    cluster_bits: int = 16
    size: int = 0
    crypt_method: int = 0
    l1_entries: int = 0
    l1_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    snapshot_count: int = 0
    snapshots_offset: int = 0
    incompatible = Incompatible(0)
    compatible = Compatible(0)
    autoclear = Autoclear(0)
    refcount_order: int = 4
    compression: int = 0
    backing_file: str | None = None
    extensions: dict[int, bytes]
    """By type, in the order of the file; what we do not know is kept."""

    def __init__(self, **fields: Any) -> None:
        self.extensions = {}
        self.change(**fields)

    def change(self, **fields: Any) -> None:
        """Set fields by name; `AttributeError` for what is none."""
        for name, value in fields.items():
            if name not in Header.__annotations__ and not hasattr(Header, name):
                raise AttributeError(f"a header has no field {name!r}")
            setattr(self, name, value)

    @property
    def cluster_bytes(self) -> int:
        """The size of a cluster."""
        return 1 << self.cluster_bits

    @property
    def backing_format(self) -> str | None:
        """What format the backing image is said to have."""
        return _text(self.extensions.get(BACKING_FORMAT))

    @property
    def data_file(self) -> str | None:
        """The name of the external data file."""
        return _text(self.extensions.get(DATA_FILE))

    @property
    def l2_reach_bytes(self) -> int:
        """The bytes of the disk that an L2 table maps."""
        entry_bits = 4 if self.incompatible & Incompatible.EXTENDED_L2 else 3
        return 1 << (2 * self.cluster_bits - entry_bits)

    def layout(self) -> Layout:
        """What the data path is told."""
        return Layout(
            version=self.version,
            cluster_bits=self.cluster_bits,
            refcount_order=self.refcount_order,
            size=self.size,
            l1_offset=self.l1_offset,
            l1_entries=self.l1_entries,
            refcount_table_offset=self.refcount_table_offset,
            refcount_table_clusters=self.refcount_table_clusters,
            extended_l2=bool(self.incompatible & Incompatible.EXTENDED_L2),
            zstd=self.compression == 1,
            external_data=bool(self.incompatible & Incompatible.DATA_FILE),
            lazy_refcounts=bool(self.compatible & Compatible.LAZY_REFCOUNTS),
            incompatible=int(self.incompatible),
        )

    def pack(self) -> bytes:
        """The header as it is in the file. `DiskError` when its names do not fit the cluster."""
        length = V2.size if self.version < 3 else V3_BYTES + COMPRESSION_BYTES
        name = (self.backing_file or "").encode()
        extensions = self._pack_extensions(self.cluster_bytes - length - len(name))
        at = length + len(extensions)
        if at + len(name) > self.cluster_bytes or len(name) > MAX_NAME_BYTES:
            raise DiskError(f"backing file {self.backing_file}: the name is too long; shorten it")
        first = V2.pack(
            MAGIC,
            self.version,
            at if name else 0,
            len(name),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_entries,
            self.l1_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            self.snapshot_count,
            self.snapshots_offset,
        )
        return first + self._pack_v3(length) + extensions + name

    def _pack_v3(self, length: int) -> bytes:
        if self.version < 3:
            return b""
        features = (self.incompatible, self.compatible, self.autoclear)
        return V3.pack(*features, self.refcount_order, length) + struct.pack(
            ">B7x", self.compression
        )

    def _pack_extensions(self, room: int) -> bytes:
        """The extensions; the names of features only where there is room for them.

        They come last: what may change is in the first sector then, which is written as a whole.
        """
        kept = dict(self.extensions)
        kept.pop(FEATURE_NAMES, None)
        packed, end = _packed(kept), EXTENSION.pack(END, 0)
        names = _packed({FEATURE_NAMES: _feature_names()}) if self.version >= 3 else b""
        fits = len(packed) + len(names) + len(end) <= room
        return packed + names + end if fits else packed + end


def read_header(file: ImageFile) -> Header:
    """The header of the image in `file`; `DiskError` names the field that is wrong."""
    raw = file.read(0, 1 << 16)
    if len(raw) < V2.size or not raw.startswith(MAGIC):
        raise DiskError(f"{file.name}: not a qcow2 image; give its format, format=raw say")
    header, backing_at, backing_bytes = _parse_fixed(file.name, raw)
    start = V2.size
    if header.version >= 3:
        start = _parse_v3(file.name, raw, header)
    limit = backing_at or header.cluster_bytes
    if header.cluster_bytes > len(raw):
        raw = file.read(0, header.cluster_bytes)
    header.extensions = _parse_extensions(file.name, raw, start, min(limit, header.cluster_bytes))
    _check_features(file.name, header)
    if backing_at:
        header.backing_file = _backing_name(file.name, raw, backing_at, backing_bytes, header)
    return header


def _parse_fixed(name: str, raw: bytes) -> tuple[Header, int, int]:
    fields = V2.unpack_from(raw)
    (_, version, backing_at, backing_bytes, cluster_bits, size, crypt) = fields[:7]
    if version not in (2, 3):
        raise DiskError(f"{name}: qcow2 version {version} is unknown; there is 2 and 3")
    if not 9 <= cluster_bits <= 21:
        raise _wrong(name, "cluster_bits", cluster_bits, "9 to 21")
    if crypt >= len(CRYPT_METHODS):
        raise _wrong(name, "crypt_method", crypt, "0 to 2")
    if fields[11] > MAX_SNAPSHOTS:
        raise _wrong(name, "nb_snapshots", fields[11], f"up to {MAX_SNAPSHOTS}")
    if size >= 1 << 63:
        raise _wrong(name, "size", size, "less than 2^63")
    header = Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size,
        crypt_method=crypt,
        l1_entries=fields[7],
        l1_offset=fields[8],
        refcount_table_offset=fields[9],
        refcount_table_clusters=fields[10],
        snapshot_count=fields[11],
        snapshots_offset=fields[12],
    )
    return header, backing_at, backing_bytes


def _parse_v3(name: str, raw: bytes, header: Header) -> int:
    """The fields of version 3; where the extensions begin."""
    if len(raw) < V3_BYTES:
        raise DiskError(f"{name}: the header is cut off; the file is damaged")
    incompatible, compatible, autoclear, order, length = V3.unpack_from(raw, V2.size)
    if length < V3_BYTES or length % 8 or length > header.cluster_bytes:
        raise _wrong(name, "header_length", length, f"{V3_BYTES} or more, within a cluster")
    if order > 6:
        raise _wrong(name, "refcount_order", order, "up to 6")
    header.incompatible = Incompatible(incompatible)
    header.compatible, header.autoclear = Compatible(compatible), Autoclear(autoclear)
    header.refcount_order = order
    header.compression = raw[V3_BYTES] if min(length, len(raw)) > V3_BYTES else 0
    if header.compression >= len(COMPRESSION_TYPES):
        raise _wrong(name, "compression_type", header.compression, "0 (zlib) or 1 (zstd)")
    return int(length)


def _parse_extensions(name: str, raw: bytes, at: int, end: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    # A file may be cut off anywhere.
    end = min(end, len(raw))
    while at + EXTENSION.size <= end:
        kind, length = EXTENSION.unpack_from(raw, at)
        at += EXTENSION.size
        if kind == END:
            break
        if length > end - at:
            raise DiskError(
                f"{name}: header extension {kind:#x} of {length} bytes does not fit; it is damaged"
            )
        found[kind] = raw[at : at + length]
        at += length + -length % 8
    return found


def _check_features(name: str, header: Header) -> None:
    known = int(Incompatible(31))
    unknown = int(header.incompatible) & ~known
    if unknown:
        names = _names_in(header.extensions.get(FEATURE_NAMES, b""))
        wanted = [names.get((0, bit), f"bit {bit}") for bit in range(64) if unknown >> bit & 1]
        raise DiskError(
            f"{name}: needs features that are not known here: {', '.join(wanted)};"
            " use the program that made it"
        )
    if (header.compression != 0) != bool(header.incompatible & Incompatible.COMPRESSION):
        raise _wrong(name, "compression_type", header.compression, "one that its features announce")


def _packed(extensions: dict[int, bytes]) -> bytes:
    return b"".join(
        EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8)
        for kind, data in extensions.items()
    )


def _names_in(table: bytes) -> dict[tuple[int, int], str]:
    names = {}
    for at in range(0, len(table) - 47, 48):
        text = table[at + 2 : at + 48].split(b"\0")[0].decode("utf-8", "replace")
        names[table[at], table[at + 1]] = " ".join(text.split())
    return names


def _feature_names() -> bytes:
    return b"".join(bytes(place) + name.encode().ljust(46, b"\0") for place, name in _NAMES.items())


def _backing_name(name: str, raw: bytes, at: int, length: int, header: Header) -> str:
    if length > MAX_NAME_BYTES or at + length > min(len(raw), header.cluster_bytes):
        raise _wrong(name, "backing_file_size", length, f"up to {MAX_NAME_BYTES}, in the cluster")
    text = _text(raw[at : at + length])
    if not text or "\0" in text:
        raise DiskError(f"{name}: the name of its backing file is damaged; set it with rebase -u")
    return text


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "surrogateescape")


def _wrong(name: str, what: str, value: int, allowed: str) -> DiskError:
    return DiskError(f"{name}: {what} is {value}, which is not {allowed}; the image is damaged")


def l1_entries(name: str, header: Header, size: int) -> int:
    """The L1 entries that a disk of `size` bytes takes; at least one."""
    entries = max(1, -(-size // header.l2_reach_bytes))
    if entries * 8 > MAX_L1_BYTES:
        raise DiskError(f"{name}: a disk of {size} bytes needs larger clusters; raise cluster_size")
    return entries

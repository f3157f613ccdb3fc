"""The text of a VMDK: which extents make up the disk, and which image it builds on.

Source: VMware's "Virtual Disk Format 5.0", "The Descriptor File". Names of other files in it are
input like any other: they are opened only beside the descriptor or at the path it gives, read only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ostler.block.source import ByteSource, damaged, read_field, unsupported

DESCRIPTOR_BYTES_MAX = 1 << 20
NO_PARENT = 0xFFFFFFFF
EXTENTS_MAX = 4096

FLAT_TYPES, SPARSE_TYPES = ("FLAT", "VMFS"), ("SPARSE", "VMFSSPARSE")
EMPTY_TYPE = "ZERO"
CREATE_TYPES = (
    "monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat",
    "streamOptimized", "vmfs", "vmfsSparse", "custom",
)  # fmt: skip

_SETTING = re.compile(r'^\s*([A-Za-z][\w.]*)\s*=\s*"?([^"\r\n]*)"?\s*$', re.MULTILINE)
_EXTENT = re.compile(
    r'^(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+([A-Z]+)(?:\s+"([^"\r\n]*)"(?:\s+(\d{1,18}))?)?\s*$'
)


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One line of the extent description; sizes in sectors of 512 bytes."""

    sectors: int
    kind: str
    file: str
    offset_sectors: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a descriptor says."""

    create_type: str
    cid: int
    parent_cid: int
    parent_hint: str | None
    """`parentFileNameHint`: the image below this one, or None."""
    extents: tuple[ExtentLine, ...]


def read_descriptor(source: ByteSource, offset: int, length: int) -> Descriptor:
    """The descriptor in `length` bytes of `source`, which zeros may end early."""
    if length > DESCRIPTOR_BYTES_MAX:
        raise damaged(source, "descriptor", f"has {length} bytes, above {DESCRIPTOR_BYTES_MAX}")
    raw = read_field(source, offset, length, "descriptor")
    return parse_descriptor(source, raw.partition(b"\0")[0].decode("utf-8", "replace"))


def parse_descriptor(source: ByteSource, text: str) -> Descriptor:
    """What `text` says. Raises `DiskError` naming the line that is wrong."""
    settings: dict[str, str] = {}
    for name, value in _SETTING.findall(text):
        settings.setdefault(name, value)
    create_type = settings.get("createType")
    if create_type is None:
        raise damaged(source, "descriptor", "has no createType")
    if create_type not in CREATE_TYPES:
        raise unsupported(source, f"VMDK createType {create_type!r}")
    cid, parent_cid = (_cid(source, settings, name) for name in ("CID", "parentCID"))
    hint = settings.get("parentFileNameHint") or None
    if parent_cid != NO_PARENT and hint is None:
        raise damaged(source, "parentFileNameHint", f"is missing, but parentCID is {parent_cid:x}")
    return Descriptor(create_type, cid, parent_cid, hint, _extents(source, text))


def _cid(source: ByteSource, settings: dict[str, str], name: str) -> int:
    """A content ID: 32 bits in hexadecimal."""
    text = settings.get(name, "")
    if not re.fullmatch("[0-9A-Fa-f]{1,8}", text):
        raise damaged(source, name, f"is {text[:20]!r}, not 32 bits in hexadecimal")
    return int(text, 16)


def _extents(source: ByteSource, text: str) -> tuple[ExtentLine, ...]:
    lines = [
        _extent(source, line.strip())
        for line in text.splitlines()
        if line.startswith(("RW ", "RDONLY ", "NOACCESS "))
    ]
    if len(lines) > EXTENTS_MAX:
        raise damaged(source, "extent description", f"has {len(lines)} lines, over {EXTENTS_MAX}")
    return tuple(lines)


def _extent(source: ByteSource, line: str) -> ExtentLine:
    match = _EXTENT.match(line)
    shown = line[:80]
    if match is None:
        raise damaged(source, "extent line", f"{shown!r} cannot be parsed")
    access, sectors, kind, file, offset = match.groups()
    if kind not in (*FLAT_TYPES, *SPARSE_TYPES, EMPTY_TYPE):
        raise unsupported(source, f"VMDK extent type {kind}")
    if access == "NOACCESS":
        raise unsupported(source, f"the extent {shown!r} without access")
    if int(sectors) == 0:
        raise damaged(source, "extent line", f"{shown!r} has no sectors")
    if (file is None) != (kind == EMPTY_TYPE):
        raise damaged(source, "extent line", f"{shown!r} must name a file unless it is ZERO")
    if kind == "FLAT" and offset is None:
        raise damaged(source, "extent line", f"{shown!r} lacks the offset of a FLAT extent")
    return ExtentLine(int(sectors), kind, file or "", int(offset or 0))

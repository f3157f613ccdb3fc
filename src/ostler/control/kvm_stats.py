"""KVM's binary statistics (Linux, Documentation/virt/kvm/api.rst 4.133, `KVM_GET_STATS_FD`).

A descriptor that is read like a file: a header, then a description of each statistic with its name,
then the numbers. Names and their number are the kernel's; whatever it has is given. Histograms are
left out: they are of polling, not of exits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("<6I")  # flags, name_size, num_desc, id_offset, desc_offset, data_offset
DESCRIPTION = struct.Struct("<IhHII")  # flags, exponent, size, offset, bucket_size; then the name
NUMBER = struct.Struct("<Q")
TYPE_MASK, TYPE_LAST_SCALAR = 0xF, 2  # cumulative, instant, peak; then the histograms
# What a sane kernel stays far below: the file is the kernel's, but a bound costs nothing.
MAX_DESCRIPTIONS, MAX_NAME_BYTES = 4096, 256


class Description(NamedTuple):
    """A statistic: its name, and where its number is among the data."""

    name: str
    offset: int


def read_scalars(fd: int) -> dict[str, int]:
    """Every statistic of `fd` that is one number, by name, in the unit that the kernel documents.

    `OSError` when it is no such descriptor.
    """
    raw = os.pread(fd, HEADER.size, 0)
    if len(raw) < HEADER.size:
        raise OSError(f"descriptor {fd} gives no KVM statistics")
    _, name_bytes, count, _, descriptions_at, data_at = HEADER.unpack(raw)
    if count > MAX_DESCRIPTIONS or name_bytes > MAX_NAME_BYTES:
        raise OSError(f"descriptor {fd} gives {count} statistics of {name_bytes} bytes of name")
    entry_bytes = DESCRIPTION.size + name_bytes
    found = list(_scalars(os.pread(fd, count * entry_bytes, descriptions_at), entry_bytes))
    if not found:
        return {}
    data_bytes = max(entry.offset for entry in found) + NUMBER.size
    data = os.pread(fd, data_bytes, data_at)
    if len(data) < data_bytes:
        raise OSError(f"descriptor {fd} gives KVM statistics that are cut short")
    return {name: NUMBER.unpack_from(data, offset)[0] for name, offset in found}


def _scalars(raw: bytes, entry_bytes: int) -> Iterator[Description]:
    for at in range(0, len(raw) - entry_bytes + 1, entry_bytes):
        flags, _, _, offset, _ = DESCRIPTION.unpack_from(raw, at)
        if flags & TYPE_MASK <= TYPE_LAST_SCALAR:
            name = raw[at + DESCRIPTION.size : at + entry_bytes]
            yield Description(name.split(b"\0", 1)[0].decode(errors="replace"), offset)

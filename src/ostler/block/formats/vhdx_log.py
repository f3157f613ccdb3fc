"""The log of a VHDX (MS-VHDX 2.3), replayed into memory: the file itself stays as it is.

A writer that died leaves changes of metadata in the log. QEMU opens such an image only for writing;
here the newest complete sequence of entries becomes an overlay over the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ostler.block.formats.vhdx_checksum import is_sealed
from ostler.block.source import ByteSource, damaged, read_field, unsupported

PAGE_BYTES = 4096
UNIT_BYTES = 1 << 20
LOG_BYTES_MAX = 16 << 20
"""More than this is not replayed: writers use 1 MiB, and the overlay has to fit in memory."""

# signature checksum entry_length tail sequence_number descriptor_count reserved log_guid
# flushed_file_offset last_file_offset
_ENTRY = struct.Struct("<4sIIIQII16sQQ")
# signature trailing_bytes leading_bytes file_offset sequence_number
_DATA = struct.Struct("<4s4s8sQQ")
# signature reserved zero_length file_offset sequence_number
_ZERO = struct.Struct("<4sIQQQ")
_DESCRIPTOR_BYTES = 32
_NO_GUID = bytes(16)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry, checked: what it writes, and where in the log it begins."""

    at: int
    length: int
    tail: int
    sequence_number: int
    last_file_offset: int
    writes: tuple[tuple[int, bytes | int], ...]
    """File offset, and a page's bytes or a number of zeros."""


class Overlay:
    """A source with the log's writes over it."""

    def __init__(self, source: ByteSource, entries: list[LogEntry]) -> None:
        self.name = source.name
        self._source = source
        self._pages: dict[int, bytes] = {}
        self._zeros: list[tuple[int, int]] = []
        for entry in entries:
            for offset, content in entry.writes:
                self._apply(offset, content)
        self._file_bytes = source.size_bytes
        self._size_bytes = max(source.size_bytes, *(e.last_file_offset for e in entries))

    @property
    def size_bytes(self) -> int:
        """The file's size once the log is in it."""
        return self._size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """The bytes with the log applied; zeros where the file has yet to grow."""
        there = max(0, min(length, self._file_bytes - offset))
        content = bytearray(self._source.read(offset, there) if there else b"")
        content += bytes(length - there)
        for start, end in self._zeros:
            _paste(content, offset, start, bytes(max(0, min(end, offset + length) - start)))
        first, last = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
        for page in self._touched(first, last):
            _paste(content, offset, page * PAGE_BYTES, self._pages[page])
        return bytes(content)

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _apply(self, offset: int, content: bytes | int) -> None:
        if isinstance(content, bytes):
            self._pages[offset // PAGE_BYTES] = content
            return
        # A later zeroing wins over an earlier page.
        for page in self._touched(offset // PAGE_BYTES, (offset + content) // PAGE_BYTES):
            del self._pages[page]
        self._zeros.append((offset, offset + content))

    def _touched(self, first: int, end: int) -> list[int]:
        if end - first < len(self._pages):
            return [page for page in range(first, end) if page in self._pages]
        return [page for page in self._pages if first <= page < end]


def _paste(content: bytearray, offset: int, at: int, piece: bytes) -> None:
    """Put into `content`, which begins at `offset`, what it has room for of `piece` at `at`."""
    start, end = max(at, offset), min(at + len(piece), offset + len(content))
    if start < end:
        content[start - offset : end - offset] = piece[start - at : end - at]


def replayed(source: ByteSource, offset: int, length: int, guid: bytes) -> ByteSource:
    """`source` with the log at `offset` applied, or itself when the log is empty (a zero GUID).

    Raises `DiskError` when the log cannot be replayed, naming what is wrong with it.
    """
    if guid == _NO_GUID:
        return source
    if length > LOG_BYTES_MAX:
        raise unsupported(source, f"a VHDX log of {length} bytes that has to be replayed")
    if not length or length % UNIT_BYTES or offset % UNIT_BYTES:
        raise damaged(source, "log", f"has {length:#x} bytes at {offset:#x}, not MiBs")
    log = read_field(source, offset, length, "log (LogOffset, LogLength)")
    entries = _active_sequence(log, guid)
    if not entries:
        raise damaged(source, "log", "has a LogGuid, but no complete sequence of entries")
    flushed = _ENTRY.unpack_from(log, entries[-1].at)[8]
    if flushed > source.size_bytes:
        raise damaged(
            source, "log", f"was flushed at {flushed} bytes, the file has {source.size_bytes}"
        )
    return Overlay(source, entries)


def _active_sequence(log: bytes, guid: bytes) -> list[LogEntry]:
    """The valid sequence with the highest sequence number (MS-VHDX 2.3.3); [] without one."""
    by_place = dict(_entries(log, guid))
    best: list[LogEntry] = []
    for start in by_place:
        sequence = _sequence(by_place, start, len(log))
        # The head's tail has to lie in the sequence: what is before it is in the file already.
        places = [entry.at for entry in sequence]
        if sequence[-1].tail not in places:
            continue
        sequence = sequence[places.index(sequence[-1].tail) :]
        if not best or sequence[-1].sequence_number > best[-1].sequence_number:
            best = sequence
    return best


def _sequence(by_place: dict[int, LogEntry], start: int, log_bytes: int) -> list[LogEntry]:
    """Entries from `start` on, each right behind the one before and one number higher."""
    sequence = [by_place[start]]
    while len(sequence) < len(by_place):
        last = sequence[-1]
        following = by_place.get((last.at + last.length) % log_bytes)
        if following is None or following.sequence_number != last.sequence_number + 1:
            break
        sequence.append(following)
    return sequence


def _entries(log: bytes, guid: bytes) -> Iterator[tuple[int, LogEntry]]:
    for at in range(0, len(log), PAGE_BYTES):
        entry = _entry(log, at, guid)
        if entry is not None:
            yield at, entry


def _entry(log: bytes, at: int, guid: bytes) -> LogEntry | None:
    """The entry at `at`, or None when there is no valid one."""
    (signature, _, length, tail, sequence, count, _, log_guid, _, last) = _ENTRY.unpack_from(
        log, at
    )
    if signature != b"loge" or log_guid != guid or not sequence:
        return None
    if not PAGE_BYTES <= length <= len(log) or length % PAGE_BYTES or tail % PAGE_BYTES:
        return None
    if count > (length - _ENTRY.size) // _DESCRIPTOR_BYTES:
        return None
    content = (
        (log + log[:length])[at : at + length] if at + length > len(log) else log[at : at + length]
    )
    if not is_sealed(content):
        return None
    writes = _writes(content, count, sequence)
    return None if writes is None else LogEntry(at, length, tail, sequence, last, writes)


def _writes(
    content: bytes, count: int, sequence: int
) -> tuple[tuple[int, bytes | int], ...] | None:
    """What the descriptors of an entry say, or None when one of them is not valid."""
    writes: list[tuple[int, bytes | int]] = []
    data_at = -(-(_ENTRY.size + count * _DESCRIPTOR_BYTES) // PAGE_BYTES) * PAGE_BYTES
    for index in range(count):
        at = _ENTRY.size + index * _DESCRIPTOR_BYTES
        signature = content[at : at + 4]
        if signature == b"zero":
            _, _, length, offset, number = _ZERO.unpack_from(content, at)
            if length % PAGE_BYTES or offset % PAGE_BYTES or number != sequence:
                return None
            writes.append((offset, length))
        elif signature == b"desc":
            _, trailing, leading, offset, number = _DATA.unpack_from(content, at)
            page = content[data_at : data_at + PAGE_BYTES]
            data_at += PAGE_BYTES
            if offset % PAGE_BYTES or number != sequence or not _is_data(page, sequence):
                return None
            writes.append((offset, leading + page[8:-4] + trailing))
        else:
            return None
    return tuple(writes)


def _is_data(page: bytes, sequence: int) -> bool:
    """Whether a data sector is whole: its halves carry the entry's number."""
    if len(page) != PAGE_BYTES or page[:4] != b"data":
        return False
    high, low = int.from_bytes(page[4:8], "little"), int.from_bytes(page[-4:], "little")
    return high << 32 | low == sequence

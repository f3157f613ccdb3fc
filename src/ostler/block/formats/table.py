"""Tables of block addresses inside an image, read a page at a time.

A header may claim a table of gigabytes. Nothing is allocated for the claim: pages are read when an
entry in them is asked for, and only the last `PAGES_KEPT` stay.
"""

from __future__ import annotations

import sys
from array import array

from ostler.block.formats.kept import Kept
from ostler.block.source import ByteSource, damaged, read_field

PAGE_BYTES = 64 << 10
PAGES_KEPT = 64


class EntryTable:
    """`count` unsigned integers of 4 or 8 bytes at `offset`. Raises `DiskError` if they cannot be.

    `field` is what errors call the table.
    """

    def __init__(
        self,
        source: ByteSource,
        field: str,
        *,
        offset: int,
        count: int,
        entry_bytes: int,
        byteorder: str,
    ) -> None:
        if offset + count * entry_bytes > source.size_bytes:
            raise damaged(
                source,
                field,
                f"with {count} entries at {offset:#x} ends beyond the {source.size_bytes} bytes"
                " of the file (truncated?)",
            )
        self.field = field
        self.count = count
        self._source = source
        self._offset = offset
        self._typecode = {4: "I", 8: "Q"}[entry_bytes]
        self._entry_bytes = entry_bytes
        self._swapped = byteorder != sys.byteorder
        self._per_page = PAGE_BYTES // entry_bytes
        self._pages = Kept(PAGES_KEPT, self._load)

    def __getitem__(self, index: int) -> int:
        page, slot = divmod(index, self._per_page)
        return self._pages.get(page)[slot]

    def run(self, index: int, limit: int) -> int:
        """How many entries from `index` on, at most `limit`, equal the one at `index`."""
        value = self[index]
        end = min(index + limit, self.count)
        at = index
        while at < end:
            page, slot = divmod(at, self._per_page)
            entries = self._pages.get(page)[slot : slot + end - at]
            if entries.count(value) == len(entries):
                at += len(entries)
                continue
            return at - index + next(n for n, entry in enumerate(entries) if entry != value)
        return at - index

    def _load(self, number: int) -> array[int]:
        first = number * self._per_page
        count = min(self._per_page, self.count - first)
        page = array(self._typecode)
        page.frombytes(
            read_field(
                self._source,
                self._offset + first * self._entry_bytes,
                count * self._entry_bytes,
                self.field,
            )
        )
        if self._swapped:
            page.byteswap()
        return page

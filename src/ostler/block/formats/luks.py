"""LUKS as a format of its own: a header, then the disk's content, encrypted sector by sector.

LUKS1 is read, written and created, as QEMU and cryptsetup do it; LUKS2 is read. The size of the
disk is what the file has behind the header. What was never written reads as noise, as there: an
encrypted disk has no holes to tell.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from ostler.block.crypto import luks1, luks2
from ostler.block.crypto.cipher import SECTOR_BYTES
from ostler.block.crypto.secret import needs_passphrase
from ostler.block.image import (
    Buffer,
    Closing,
    Extent,
    ImageFile,
    Opening,
    check_range,
    check_writable,
)
from ostler.block.registry import Format
from ostler.block.source import damaged
from ostler.engine.crypto import SectorCipher
from ostler.errors import DiskError

PIECE_BYTES = 1 << 20
"""What is encrypted and written at a time."""


class LuksImage(Closing):
    """An open LUKS image. Raises `DiskError` when the passphrase does not fit."""

    format = "luks"

    def __init__(self, file: ImageFile, how: Opening) -> None:
        self.file, self.name, self.readonly = file, file.name, file.readonly
        self.is_locked = how.secret is None
        if self.is_locked and not (how.keyless and how.readonly):
            raise needs_passphrase(file.name)
        # Two writes into one sector must not both begin with what was in it before.
        self._around = threading.Lock()
        self.header: luks1.Luks1Header | luks2.Luks2Header
        if luks2.is_luks2(file):
            self._open_luks2(file, how.secret)
        else:
            self._open_luks1(file, how.secret)
        self._step = self.sector_bytes // SECTOR_BYTES
        if self.payload_offset > file.size_bytes:
            raise damaged(file, "payload-offset", f"{self.payload_offset:#x} is beyond the file")
        self.size_bytes = self._content_bytes()

    def _open_luks1(self, file: ImageFile, secret: bytes | None) -> None:
        header = luks1.parse(file)
        self.header = header
        if secret is not None:
            self._key = luks1.unlock(file, header, secret)
            self._cipher: SectorCipher = header.spec.cipher(file.name, self._key)
        self.payload_offset, self.sector_bytes, self._iv_offset = (
            header.payload_offset, SECTOR_BYTES, 0,
        )  # fmt: skip
        self._size: int | None = None

    def _open_luks2(self, file: ImageFile, secret: bytes | None) -> None:
        if not file.readonly:
            raise DiskError(
                f"{file.name}: LUKS2 images can be read, not written; open it read-only"
            )
        header = luks2.parse(file)
        self.header, segment = header, header.segment
        if secret is not None:
            self._key = luks2.unlock(file, header, secret)
            self._cipher = segment.spec.cipher(file.name, self._key, segment.sector_bytes)
        self.payload_offset, self.sector_bytes = segment.offset, segment.sector_bytes
        self._iv_offset, self._size = segment.iv_offset, segment.size

    def _content_bytes(self) -> int:
        """What the file has behind the header, in whole sectors."""
        there = self.file.size_bytes - self.payload_offset
        there -= there % self.sector_bytes
        return there if self._size is None else min(there, self._size)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        check_range(self, offset, length)
        start, end = self._sectors(offset, length)
        clear = self._decrypted(start, end - start)
        return clear[offset - start : offset - start + length]

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; sectors that it covers in part are read first."""
        check_writable(self)
        view = memoryview(data).cast("B")
        check_range(self, offset, len(view))
        for at in range(0, len(view), PIECE_BYTES):
            self._write(offset + at, view[at : at + PIECE_BYTES])

    def _write(self, offset: int, piece: memoryview) -> None:
        start, end = self._sectors(offset, len(piece))
        if (start, end) == (offset, offset + len(piece)):
            self._store(start, bytes(piece))
            return
        with self._around:
            around = bytearray(self._decrypted(start, end - start))
            around[offset - start : offset - start + len(piece)] = piece
            self._store(start, bytes(around))

    def _store(self, start: int, content: bytes) -> None:
        encrypted = self._cipher.encrypt(content, self._number(start), self._step)
        self.file.write(self.payload_offset + start, encrypted)

    def flush(self) -> None:
        """All that was written is on stable storage when this returns."""
        self.file.flush()

    def discard(self, offset: int, length: int) -> None:
        """Nothing: a hole would tell where the disk is empty, and not read as zeroes."""
        check_writable(self)
        check_range(self, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Write zeroes, encrypted."""
        check_writable(self)
        check_range(self, offset, length)
        for at in range(offset, offset + length, PIECE_BYTES):
            self.write(at, bytes(min(PIECE_BYTES, offset + length - at)))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All of it is data."""
        check_range(self, offset, length)
        if length:
            yield Extent(offset, length, allocated=True, zero=False)

    def resize(self, size_bytes: int) -> None:
        """Make the disk `size_bytes` long; what is new reads as zeroes."""
        check_writable(self)
        if size_bytes % self.sector_bytes:
            raise DiskError(f"{self.name}: {size_bytes} bytes are no whole sectors of 512")
        before, self.size_bytes = self.size_bytes, size_bytes
        self.file.truncate(self.payload_offset + size_bytes)
        if size_bytes > before:
            self.write_zeroes(before, size_bytes - before)

    def add_key(self, secret: bytes, *, milliseconds: int = 2000) -> None:
        """Let a second passphrase open the image, too."""
        header = self._writable_header()
        self.header = luks1.add_key(
            self.name, header, self._key, secret, milliseconds, self.file.write
        )
        self.file.flush()

    def erase_key(self, slot: int) -> None:
        """Make the passphrase of a key slot useless."""
        self.header = luks1.erase_slot(self.name, self._writable_header(), slot, self.file.write)
        self.file.flush()

    def _writable_header(self) -> luks1.Luks1Header:
        check_writable(self)
        assert isinstance(self.header, luks1.Luks1Header)
        return self.header

    def format_specific(self) -> dict[str, Any]:
        """What `qemu-img info` shows of a LUKS image."""
        if isinstance(self.header, luks2.Luks2Header):
            return {"version": 2, "uuid": self.header.uuid}
        return luks1.facts(self.header)

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self.file.close()

    def _sectors(self, offset: int, length: int) -> tuple[int, int]:
        """The whole sectors around a range."""
        sector = self.sector_bytes
        return offset // sector * sector, -(-(offset + length) // sector) * sector

    def _number(self, offset: int) -> int:
        """What the sector at `offset` is called in its initialization vector."""
        return self._iv_offset + offset // SECTOR_BYTES

    def _decrypted(self, start: int, length: int) -> bytes:
        if self.is_locked:
            raise needs_passphrase(self.name)
        stored = self.file.read(self.payload_offset + start, length)
        if len(stored) != length:
            raise damaged(self.file, "payload", f"ends within {length} bytes at {start:#x}")
        return self._cipher.decrypt(stored, self._number(start), self._step)


FORMAT = Format(open=LuksImage, creation="ostler.block.formats.luks_create")

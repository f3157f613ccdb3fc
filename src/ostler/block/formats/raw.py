"""Raw images: the file's bytes are the disk's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ostler.block.image import (
    SECTOR_BYTES,
    Buffer,
    Closing,
    Extent,
    ImageFile,
    LocalDescriptor,
    Opening,
    check_range,
    check_writable,
)
from ostler.block.registry import Format, Magic, guarded_magics
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.engine.block import BlockDisk


class RawImage(Closing):
    """An open raw image. Raises `DiskError` when the file cannot be one."""

    format = "raw"

    def __init__(self, file: ImageFile, how: Opening) -> None:
        self.file, self.name, self.readonly = file, file.name, file.readonly
        self.size_bytes = _disk_size(file, how)
        self.block_bytes: int = getattr(file, "block_bytes", SECTOR_BYTES)
        self.guarded: tuple[Magic, ...] = guarded_magics() if how.probed else ()
        """What may not be written where it would make the disk look like another format."""
        self._disk: BlockDisk | None = None

    @property
    def fd(self) -> int:
        """The descriptor of a local file; -1 for anything else."""
        return self.file.fd if isinstance(self.file, LocalDescriptor) else -1

    @property
    def disk(self) -> BlockDisk:
        """The engine's view of the disk, for bulk work and virtual machines."""
        if self._disk is None:
            from ostler.block.data_path import storage_of
            from ostler.engine.block import BlockDisk

            self._disk = BlockDisk.raw(
                self.name,
                storage_of(self.file),
                self.size_bytes,
                readonly=self.readonly,
                guarded=self.guarded,
            )
        return self._disk

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        check_range(self, offset, length)
        return self.file.read(offset, length).ljust(length, b"\0")

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`."""
        check_writable(self)
        check_range(self, offset, len(memoryview(data).cast("B")))
        self._refuse_disguise(offset, data)
        self.file.write(offset, data)

    def _refuse_disguise(self, offset: int, data: Buffer) -> None:
        if not self.guarded or offset >= SECTOR_BYTES:
            return
        head = bytearray(self.file.read(0, SECTOR_BYTES))
        piece = bytes(memoryview(data).cast("B")[: SECTOR_BYTES - offset])
        head[offset : offset + len(piece)] = piece
        if any(head.startswith(data, at) for at, data in self.guarded):
            raise DiskError(
                f"{self.name}: a write would make this raw disk look like another format;"
                " give format=raw to allow it"
            )

    def flush(self) -> None:
        """All that was written is on stable storage when this returns."""
        self.file.flush()

    def discard(self, offset: int, length: int) -> None:
        """Give the range back to the host."""
        check_writable(self)
        check_range(self, offset, length)
        self.file.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes."""
        check_writable(self)
        check_range(self, offset, length)
        self.file.write_zeroes(offset, length, unmap=unmap)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Data and holes: a raw image decides about all of it."""
        check_range(self, offset, length)
        for extent in self.file.extents(offset, length):
            yield extent._replace(allocated=True, host_offset=extent.offset)

    def resize(self, size_bytes: int) -> None:
        """Make the disk `size_bytes` long."""
        check_writable(self)
        self.file.truncate(size_bytes)
        self.size_bytes, self._disk = size_bytes, None

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self._disk = None
        self.file.close()


def _disk_size(file: ImageFile, how: Opening) -> int:
    """Whole sectors. What a file lacks of its last one reads as zeroes, but cannot be written."""
    size = file.size_bytes
    whole = size + -size % SECTOR_BYTES
    if file.readonly:
        return whole
    if size == 0:
        raise DiskError(
            f"{file.name}: the file is empty; make a disk of it: ostler image create"
            f" -f raw {file.name} 10G"
        )
    if size == whole:
        return size
    odd = f"{size} bytes is not a multiple of {SECTOR_BYTES}"
    if how.probed:
        raise DiskError(
            f"{file.name}: no disk image of a format that is known, and {odd}, which no raw disk"
            " is; it can be read only: readonly=on, or make a copy with ostler image convert"
        )
    raise DiskError(f"{file.name}: {odd}; grow it with: truncate -s {whole} {file.name}")


FORMAT = Format(open=RawImage, creation="ostler.block.formats.raw_create")

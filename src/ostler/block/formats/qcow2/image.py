"""An open qcow2 image: the engine's data path, and what is decided around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any

from ostler.block.chain import open_backing, refuse_guessed_chain, resolve
from ostler.block.data_path import storage_of
from ostler.block.formats.qcow2 import resize, snapshots
from ostler.block.formats.qcow2.check import CheckResult, check, references
from ostler.block.formats.qcow2.header import (
    BITMAPS,
    COMPRESSION_TYPES,
    CRYPT_METHODS,
    Autoclear,
    Compatible,
    Incompatible,
    read_header,
)
from ostler.block.image import (
    BackingReference,
    Buffer,
    Closing,
    Extent,
    Image,
    ImageFile,
    Opening,
    Snapshot,
    check_range,
    check_writable,
)
from ostler.engine.block import BlockStorage, Qcow2Disk
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.bitmaps import Bitmap
    from ostler.block.formats.qcow2.recording import Recording
    from ostler.engine.crypto import SectorCipher

L2_CACHE_BYTES = 32 << 20
"""As QEMU's default; maps 256 GiB with clusters of 64 KiB."""


SUBCLUSTER_BITS = 5
"""An extended L2 entry has 32 subclusters."""


class Qcow2Image(Closing):
    """A qcow2 image. See `docs/formats/qcow2.md` for what survives a crash."""

    format = "qcow2"
    is_locked = False
    """Encrypted, and opened without a passphrase: what the clusters hold does not read."""
    ends_whole = True
    """Its file is to end with a whole cluster."""

    def __init__(self, file: ImageFile, how: Opening) -> None:
        self.file, self.name, self.readonly = file, file.name, file.readonly
        self.header = read_header(file)
        self._opened_bytes = file.size_bytes
        self.how = how
        self.recording: Recording | None = None
        self._refuse_unsafe_writing()
        self.backing: Image | None = None
        self.data_file: ImageFile | None = None
        self.cipher = self._unlock()
        try:
            self._open_others(how)
            self._open_disk(how)
        except BaseException:
            self._close_others()
            raise

    def _unlock(self) -> SectorCipher | None:
        """The cipher of the data clusters, or `None` for an image in clear."""
        if self.header.crypt_method == 0:
            return None
        from ostler.block.formats.qcow2 import encryption

        self.is_locked = encryption.is_locked(self.header, self.how)
        return encryption.unlock(self.file, self.header, self.how)

    def _refuse_locked(self) -> None:
        if self.is_locked:
            from ostler.block.crypto.secret import needs_passphrase

            raise needs_passphrase(self.name)

    def _refuse_unsafe_writing(self) -> None:
        is_damaged = self.header.incompatible & Incompatible.CORRUPT
        if is_damaged and not self.readonly and not self.how.repairing:
            raise DiskError(
                f"{self.name}: the image is marked as damaged; run: ostler image check -r all"
            )

    def _open_others(self, how: Opening) -> None:
        """The backing image and the external data file, if there are any."""
        names_others = self.header.backing_file or self.header.incompatible & Incompatible.DATA_FILE
        if names_others and (how.backing or not self.header.backing_file):
            refuse_guessed_chain(self.name, how)
        if self.header.incompatible & Incompatible.DATA_FILE:
            self._open_data_file(how)
        reference = self.backing_reference
        if reference is not None and how.backing:
            self.backing = open_backing(self.name, reference, how)

    def _open_data_file(self, how: Opening) -> None:
        from ostler.block.registry import open_file

        if not self.header.data_file:
            raise DiskError(f"{self.name}: does not say where its external data file is")
        path = resolve(self.header.data_file, self.name)
        self.data_file = open_file(path, readonly=self.readonly, lock=how.lock, direct=how.direct)

    def _open_disk(self, how: Opening) -> None:
        """Have the data path serve the image; one that was not closed is repaired first."""
        self.size_bytes = self.header.size
        if not self.readonly:
            self._clear_unkept_features()
        self.disk = self._new_disk()
        self._snapshots = snapshots.read_table(self.file, self.header)
        needs_repair = self.header.incompatible & Incompatible.DIRTY and not self.readonly
        if needs_repair and not self.how.repairing:
            self.check(repair="all")
        has_bitmaps = self.header.autoclear & Autoclear.BITMAPS
        if has_bitmaps and not self.readonly and not self.how.repairing:
            self.record().begin()

    def _new_disk(self) -> Qcow2Disk:
        current = read_header(self.file)
        self.header.refcount_table_offset = current.refcount_table_offset
        self.header.refcount_table_clusters = current.refcount_table_clusters
        disk = self._make_disk()
        if self.recording is not None:
            self.disk = disk
            self.recording.attach()
        return disk

    def _make_disk(self) -> Qcow2Disk:
        return Qcow2Disk(
            self.name,
            storage_of(self.file),
            self.header.layout(),
            data=self._data_storage(),
            backing=self.backing,
            readonly=self.readonly,
            l2_cache_bytes=L2_CACHE_BYTES,
            is_unsafe=self.how.unsafe,
            punch_holes=True,
            legacy_cipher=self.cipher if self._is_legacy else None,
        )

    @property
    def _is_legacy(self) -> bool:
        """Encrypted in the old way, whose sectors the disk numbers."""
        return CRYPT_METHODS[self.header.crypt_method] == "aes"

    def _data_storage(self) -> BlockStorage | None:
        """Where the guest's clusters are, if that is not the image's file as it is."""
        cipher = None if self._is_legacy else self.cipher
        if self.data_file is None:
            return None if cipher is None else storage_of(self.file).decrypted(cipher)
        data = storage_of(self.data_file)
        return data if cipher is None else data.decrypted(cipher)

    def _clear_unkept_features(self) -> None:
        """What autoclear features promise and we do not keep is not promised any more.

        Bitmaps without the promise missed what another program wrote: they are forgotten.
        """
        kept = self.header.autoclear & (Autoclear.RAW_DATA_FILE | Autoclear.BITMAPS)
        stale = BITMAPS in self.header.extensions and not kept & Autoclear.BITMAPS
        if self.header.autoclear != kept or stale:
            self.header.autoclear = kept
            if stale:
                del self.header.extensions[BITMAPS]
            self.write_header()

    @property
    def bitmaps(self) -> tuple[Bitmap, ...]:
        """All persistent bitmaps; where the image is open for writing, as they will be saved."""
        if self.recording is not None:
            return tuple(kept.bitmap for kept in self.recording.all)
        if not self.header.autoclear & Autoclear.BITMAPS:
            return ()
        from ostler.block.formats.qcow2.bitmaps import read_directory

        return tuple(read_directory(self.file, self.header))

    def record(self) -> Recording:
        """The bitmaps, to be changed."""
        from ostler.block.formats.qcow2.recording import Recording

        check_writable(self)
        if self.recording is None:
            self.recording = Recording(self)
        return self.recording

    def reload(self) -> None:
        """Have the data path know the header as it is now; nothing is only in memory."""
        self.disk = _CLOSED
        self.disk = self._new_disk()

    def change_refcount_order(self, order: int) -> None:
        """Count clusters in 2^`order` bits from now on."""
        self.disk.settle()
        places = references(self, self._snapshots)
        self.disk.rebuild_refcounts(*places, order=order)
        self.header.refcount_order = order
        self.reload()

    def detach_backing(self) -> None:
        """Let go of what is behind: unallocated clusters read as zeroes until it is attached."""
        self.disk.settle()
        backing, self.backing, self.disk = self.backing, None, _CLOSED
        if backing is not None:
            backing.close()
        self.disk = self._new_disk()

    def attach_backing(self) -> None:
        """Open what the header says is behind."""
        reference = self.backing_reference
        self.disk.settle()
        if reference is not None:
            self.backing = open_backing(self.name, reference, self.how)
        self.disk = _CLOSED
        self.disk = self._new_disk()

    def put_behind(self, backing: Image | None) -> None:
        """Have this open image behind, which nothing is; the header stays as it is."""
        self.disk.settle()
        self.backing, self.disk = backing, _CLOSED
        self.disk = self._new_disk()

    @property
    def unit_bits(self) -> int:
        """log2 of what is allocated at once: a cluster or a subcluster."""
        extended = self.header.incompatible & Incompatible.EXTENDED_L2
        return self.header.cluster_bits - (SUBCLUSTER_BITS if extended else 0)

    @property
    def backing_reference(self) -> BackingReference | None:
        """What the header says of the backing image."""
        if self.header.backing_file is None:
            return None
        return BackingReference(self.header.backing_file, self.header.backing_format)

    def write_header(self) -> None:
        """Put the header into the file, stable. Tables that it refers to must be stable already.

        The refcount table is the data path's, which may have moved it.
        """
        if self.header.refcount_table_offset:
            current = read_header(self.file)
            self.header.refcount_table_offset = current.refcount_table_offset
            self.header.refcount_table_clusters = current.refcount_table_clusters
        self.file.write(0, self.header.pack())
        self.file.flush()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of the disk."""
        check_range(self, offset, length)
        self._refuse_locked()
        return self.disk.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`."""
        check_range(self, offset, memoryview(data).nbytes)
        self.disk.write(offset, data)

    def flush(self) -> None:
        """All that was written, and the tables that lead to it, are on stable storage."""
        self.disk.flush()

    def settle(self) -> None:
        """Leave nothing in memory that the file does not have."""
        self.disk.settle()

    def discard(self, offset: int, length: int) -> None:
        """Give up whole clusters of the range; they read as zeroes."""
        check_range(self, offset, length)
        self.disk.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes."""
        check_range(self, offset, length)
        self.disk.write_zeroes(offset, length, unmap=unmap)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What this layer holds."""
        check_range(self, offset, length)
        end = offset + length
        while offset < end:
            run, content, host = self.disk.extent_at(offset, end - offset)
            yield Extent(
                offset,
                run,
                allocated=content != "unallocated",
                zero=content == "zero"
                or (
                    content == "unallocated"
                    and self.backing is None
                    and self.header.backing_file is None
                ),
                host_offset=host,
                compressed=content == "compressed",
            )
            offset += run

    def resize(self, size_bytes: int) -> None:
        """Make the disk `size_bytes` long."""
        resize.resize(self, size_bytes)

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """All internal snapshots."""
        return tuple(entry.public for entry in self._snapshots)

    def snapshot(self, name: str, *, again: bool = False) -> Snapshot:
        """Keep the disk as it is now under `name`, which no other has unless it is `again`."""
        return snapshots.create(self, self._snapshots, name, again=again)

    def apply_snapshot(self, name: str) -> None:
        """Make the disk what it was when the snapshot was made."""
        snapshots.apply(self, self._snapshots, name)

    def delete_snapshot(self, name: str) -> None:
        """Forget a snapshot and free what only it needed."""
        snapshots.delete(self, self._snapshots, name)

    def drop_state(self) -> None:
        """Forget what applying a snapshot left of a machine's state; the snapshot keeps it."""
        snapshots.drop_state(self, self._snapshots)

    def view_snapshot(self, name: str) -> Qcow2Image:
        """The disk as it was when the snapshot was made, to be read; it is closed on its own."""
        wanted = snapshots.find(self, self._snapshots, name)
        from ostler.block.registry import open_file

        view = copy(self)
        view.file = open_file(self.name, readonly=True, lock=False)
        view.backing = view.data_file = view.recording = None
        view.readonly, view.how = True, self.how._replace(readonly=True, lock=False)
        view.header = copy(self.header)
        view.header.change(
            l1_offset=wanted.l1_offset,
            l1_entries=wanted.l1_entries,
            size=wanted.disk_bytes,
        )
        view.size_bytes = wanted.disk_bytes
        try:
            view._open_others(view.how)
            view.disk = view._new_disk()
        except BaseException:
            view._close_others()
            view.file.close()
            raise
        return view

    def check(self, repair: str | None = None) -> CheckResult:
        """Hold references against refcounts; `repair` is `"leaks"` or `"all"`."""
        return check(self, self._snapshots, repair)

    def format_specific(self) -> dict[str, Any]:
        """What `qemu-img info` shows of the format."""
        header, encrypt = self.header, {}
        if header.crypt_method:
            from ostler.block.formats.qcow2 import encryption

            encrypt = {"encrypt": encryption.facts(self.file, header)}
        if header.version < 3:
            return {"compat": "0.10", "compression-type": "zlib", "refcount-bits": 16, **encrypt}
        facts: dict[str, Any] = {
            "compat": "1.1",
            "compression-type": COMPRESSION_TYPES[header.compression],
            "lazy-refcounts": bool(header.compatible & Compatible.LAZY_REFCOUNTS),
            "refcount-bits": 1 << header.refcount_order,
            **encrypt,
            "corrupt": bool(header.incompatible & Incompatible.CORRUPT),
            "extended-l2": bool(header.incompatible & Incompatible.EXTENDED_L2),
        }
        if bitmaps := self.bitmaps:
            facts["bitmaps"] = [bitmap.facts() for bitmap in bitmaps]
        if header.data_file is not None:
            facts["data-file"] = header.data_file
            facts["data-file-raw"] = bool(header.autoclear & Autoclear.RAW_DATA_FILE)
        return facts

    def close(self) -> None:
        """Write what is in memory and release the files; a second call does nothing."""
        disk, self.disk = getattr(self, "disk", None), _CLOSED
        if disk is None or disk is _CLOSED:
            self._close_others()
            self.file.close()
            return
        try:
            disk.settle()
            if self.recording is not None:
                self.disk = disk
                self.recording.save()
            self._fill_last_cluster()
        finally:
            self.disk = _CLOSED
            self._close_others()
            self.file.close()

    def _fill_last_cluster(self) -> None:
        """End a file that grew with a whole cluster: some readers take what is missing not as zero.

        One that did not grow is left as it was.
        """
        end = self.file.size_bytes
        missing = -end % self.header.cluster_bytes
        if self.readonly or not self.ends_whole or not missing or end == self._opened_bytes:
            return
        # An export of a server, say, has the size that it has.
        with suppress(DiskError):
            self.file.truncate(end + missing)

    def _close_others(self) -> None:
        if self.data_file is not None:
            self.data_file.close()
        if self.backing is not None:
            self.backing.close()


_CLOSED: Any = None

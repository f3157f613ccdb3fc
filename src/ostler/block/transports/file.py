"""Local files and block devices, locked as QEMU locks them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator

from ostler.block.image import Buffer, Closing, Extent
from ostler.block.locks import lock as take_locks
from ostler.block.locks import unlock
from ostler.errors import DiskError, HostError

# _IO(0x12, 123): BLKPBSZGET; _IO(0x12, 119): BLKDISCARD
_BLKPBSZGET, _BLKDISCARD = 0x127B, 0x1277
# The major number of /dev/sg0 and so on.
_SCSI_GENERIC = 21
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)
_ZEROES = bytes(1 << 20)
_PAGE_BYTES = 4096


class LocalFile(Closing):
    """An open file or block device of this host."""

    direct = False
    """The data path goes around the host's page cache where it can."""

    def __init__(
        self, path: str, *, readonly: bool = False, lock: bool = True, direct: bool = False
    ) -> None:
        self.direct = direct
        self._adopt(path, _open(path, readonly), readonly=readonly, lock=lock)

    def _adopt(self, path: str, fd: int, *, readonly: bool, lock: bool) -> None:
        self.name, self.fd, self.readonly = path, fd, readonly
        try:
            self.is_block_device = _is_block_device(path, fd)
            self.block_bytes = self._physical_block()
            if lock:
                take_locks(self.name, fd, readonly=readonly)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: str) -> LocalFile:
        """The file at `path`, made if there is none. What one holds stays until it is replaced."""
        file = cls.__new__(cls)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            cure = "give a path that is writable"
            folder = os.path.dirname(path)
            if folder and not os.path.exists(folder):
                cure = f"make the directory {folder} first"
            raise DiskError(f"{path}: cannot create disk image: {error.strerror}; {cure}") from None
        file._adopt(path, fd, readonly=False, lock=True)
        return file

    def _physical_block(self) -> int:
        if not self.is_block_device:
            return 4096
        return int(struct.unpack("I", fcntl.ioctl(self.fd, _BLKPBSZGET, bytes(4)))[0])

    @property
    def size_bytes(self) -> int:
        """The bytes there are now."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes, fewer only where the file ends."""
        with _host(self.name, "read"):
            data = os.pread(self.fd, length, offset)
            while len(data) < length:
                more = os.pread(self.fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        return data

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`."""
        rest = memoryview(data).cast("B")
        with _host(self.name, "write"):
            while rest:
                done = os.pwrite(self.fd, rest, offset)
                rest, offset = rest[done:], offset + done

    def flush(self) -> None:
        """`fdatasync`."""
        with _host(self.name, "flush"):
            os.fdatasync(self.fd)

    def truncate(self, size_bytes: int) -> None:
        """Make a file `size_bytes` long; a device keeps its size and must be large enough."""
        if self.is_block_device:
            if size_bytes > self.size_bytes:
                raise DiskError(
                    f"{self.name}: a device of {self.size_bytes} bytes cannot grow to {size_bytes};"
                    " use a larger one"
                )
            return
        with _host(self.name, "resize"):
            os.ftruncate(self.fd, size_bytes)

    def discard(self, offset: int, length: int) -> None:
        """Give the range back to the host, if it can take it."""
        with _host(self.name, "discard"):
            if self.is_block_device:
                self._discard_blocks(offset, length)
            else:
                self._fallocate(_PUNCH_HOLE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes."""
        with _host(self.name, "write zeroes"):
            end = offset + length
            if not self.is_block_device and self.size_bytes < end:
                # To set the length would cut off what others write behind it meanwhile.
                last = min(length, _PAGE_BYTES)
                self._write_plain_zeroes(end - last, last)
            if not self._fallocate(_PUNCH_HOLE if unmap else _ZERO_RANGE, offset, length):
                self._write_plain_zeroes(offset, length)

    def _write_plain_zeroes(self, offset: int, length: int) -> None:
        while length:
            piece = min(length, len(_ZEROES))
            self.write(offset, memoryview(_ZEROES)[:piece])
            offset, length = offset + piece, length - piece

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        """Whether the host could do it."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (ctypes.c_int(mode | _KEEP_SIZE), ctypes.c_long(offset), ctypes.c_long(length))
        if length == 0 or libc.fallocate(self.fd, *arguments) == 0:
            return True
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        raise OSError(code, os.strerror(code))

    def _discard_blocks(self, offset: int, length: int) -> None:
        try:
            fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", offset, length))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Data and holes, as the file system knows them."""
        end = offset + length
        while offset < end:
            start = min(self._seek(offset, os.SEEK_DATA, end), end)
            if start > offset:
                yield Extent(offset, start - offset, allocated=False, zero=True)
            if start == end:
                return
            hole = min(self._seek(start, os.SEEK_HOLE, end), end)
            yield Extent(start, hole - start, allocated=True, zero=False, host_offset=start)
            offset = hole

    def _seek(self, offset: int, what: int, end: int) -> int:
        """Where the next data or hole begins; `end` when there is none."""
        try:
            return os.lseek(self.fd, offset, what)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            if error.errno == errno.EINVAL:
                # No such knowledge here (a device): all is data.
                return offset if what == os.SEEK_DATA else end
            raise HostError(f"{self.name}: cannot look for holes: {error.strerror}") from None

    def close(self) -> None:
        """Release the file and its locks; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            unlock(fd)
            os.close(fd)


CURES = {
    errno.ENOSPC: "; free some space",
    errno.EDQUOT: "; free some space",
    errno.EFBIG: "; raise the limit (ulimit -f), or use a file system for larger files",
}


class _host:  # noqa: N801 - reads as a statement
    """Makes the host's refusal an error of ours."""

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            cure = CURES.get(error.errno or 0, "")
            raise HostError(f"{self.name}: cannot {self.what}: {error.strerror}{cure}") from error


def _open(path: str, readonly: bool) -> int:
    _refuse_generic(path)
    try:
        return os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
    except FileNotFoundError:
        cure = "check its path" if readonly else f"make one: ostler image create {path} 10G"
        raise DiskError(f"{path}: no such disk image; {cure}") from None
    except IsADirectoryError:
        raise DiskError(f"{path}: is a directory; give a disk image file") from None
    except OSError as error:
        cure = "" if readonly else "; open it read-only or make it writable"
        raise DiskError(f"{path}: cannot open disk image: {error.strerror}{cure}") from None


def _refuse_generic(path: str) -> None:
    """Refuse what takes SCSI commands (sg(4)): it is no image."""
    try:
        found = os.stat(path)
    except OSError:
        return  # who opens it says why
    if stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == _SCSI_GENERIC:
        raise DiskError(
            f"{path}: takes SCSI commands, and is no disk image; give its block device, which"
            f" lsscsi -g names beside it, or have commands passed on:"
            f" --device scsi-generic,path={path}"
        )


def _is_block_device(path: str, fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise DiskError(f"{path}: is a directory; give a disk image file")
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise DiskError(f"{path}: neither a file nor a block device; give a disk image")
    return stat.S_ISBLK(mode)

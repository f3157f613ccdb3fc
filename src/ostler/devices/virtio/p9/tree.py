"""A directory of the host, entered at its top and never left.

Every path is opened by `openat2` from the top with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS: a link
is an object to be read, never a way to go, and no name leads out. What is created belongs to
whoever runs the machine, without set-user-id bits; devices cannot be made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ostler.errors import ConfigError

OPENAT2 = 437  # the same on every architecture
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x02, 0x04, 0x08
CONFINED = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
PERMISSIONS = 0o1777
# Of a request's open flags, what means something here; the rest is the guest kernel's own business.
OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_EXCL

Path9 = tuple[bytes, ...]
"""The names from the top down."""


class OpenHow(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class Tree:
    """The directory `root`; with `readonly`, whatever would change it fails with EROFS."""

    def __init__(self, root: Path, *, readonly: bool = False) -> None:
        self.readonly = readonly
        try:
            self._top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"--share {root}: {error.strerror}; give a directory") from error
        self._libc = ctypes.CDLL(None, use_errno=True)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._top)

    def open(self, path: Path9, flags: int, mode: int = 0) -> int:
        """A descriptor of `path`; `OSError` as the host says."""
        how = OpenHow(flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, CONFINED)
        name = ctypes.c_char_p(b"/".join(path) or b".")
        size = ctypes.c_size_t(ctypes.sizeof(how))
        fd: int = self._libc.syscall(OPENAT2, self._top, name, ctypes.byref(how), size)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return fd

    @contextmanager
    def at(self, path: Path9) -> Iterator[int]:
        """A descriptor that stands for `path`, be it a link or what may not be opened."""
        fd = self.open(path, os.O_PATH)
        try:
            yield fd
        finally:
            os.close(fd)

    def changing(self) -> None:
        """Raise EROFS where nothing may change."""
        if self.readonly:
            raise OSError(errno.EROFS, "shared read-only")

    def stat(self, path: Path9) -> os.stat_result:
        """Of the object itself, links not followed."""
        with self.at(path) as fd:
            return os.fstat(fd)

    def open_file(self, path: Path9, flags: int) -> int:
        """Open a file or directory for its contents."""
        wanted = flags & OPEN_FLAGS
        if wanted & (os.O_ACCMODE | os.O_TRUNC):
            self.changing()
        mode = self.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        if not stat.S_ISREG(mode):
            # Pipes, sockets and devices are the guest's own; the host's would block or be worse.
            raise OSError(errno.ENXIO, "not a file")
        return self.open(path, wanted & ~os.O_EXCL | os.O_NONBLOCK)

    def create_file(self, path: Path9, flags: int, mode: int) -> int:
        """Make a file and open it."""
        self.changing()
        try:
            if not stat.S_ISREG(self.stat(path).st_mode):
                raise OSError(errno.EEXIST, "not a file")
        except FileNotFoundError:
            pass  # as it should be
        wanted = flags & OPEN_FLAGS | os.O_CREAT | os.O_NONBLOCK
        return self.open(path, wanted, mode & PERMISSIONS)

    def make_directory(self, parent: Path9, name: bytes, mode: int) -> None:
        """`mkdir`."""
        self.changing()
        with self.at(parent) as fd:
            os.mkdir(name, mode & PERMISSIONS, dir_fd=fd)

    def make_node(self, parent: Path9, name: bytes, mode: int) -> None:
        """`mknod` of a file or a pipe; EPERM for a device."""
        self.changing()
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, 0):
            raise OSError(errno.EPERM, "no devices")
        with self.at(parent) as fd:
            os.mknod(name, mode & PERMISSIONS | stat.S_IFMT(mode), dir_fd=fd)

    def make_link(self, parent: Path9, name: bytes, target: bytes) -> None:
        """`symlink`."""
        self.changing()
        with self.at(parent) as fd:
            os.symlink(target, name, dir_fd=fd)

    def read_link(self, path: Path9) -> bytes:
        """Where a symbolic link points."""
        with self.at(path) as fd:
            return os.readlink(b"", dir_fd=fd)

    def hard_link(self, path: Path9, parent: Path9, name: bytes) -> None:
        """Another name for `path`."""
        self.changing()
        with self.at(path[:-1]) as source, self.at(parent) as fd:
            os.link(path[-1], name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

    def rename(self, old: Path9, parent: Path9, name: bytes) -> None:
        """Move `old`."""
        self.changing()
        with self.at(old[:-1]) as source, self.at(parent) as fd:
            os.rename(old[-1], name, src_dir_fd=source, dst_dir_fd=fd)

    def remove(self, path: Path9, *, directory: bool) -> None:
        """`unlink` or `rmdir`."""
        self.changing()
        with self.at(path[:-1]) as fd:
            if directory:
                os.rmdir(path[-1], dir_fd=fd)
            else:
                os.unlink(path[-1], dir_fd=fd)

    @contextmanager
    def by_name(self, path: Path9) -> Iterator[str]:
        """A name by which calls without a descriptor reach the object; not for links."""
        with self.at(path) as fd:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EOPNOTSUPP, "a link")
            yield f"/proc/self/fd/{fd}"

    def statfs(self) -> os.statvfs_result:
        """Of the file system that the directory is on."""
        return os.fstatvfs(self._top)

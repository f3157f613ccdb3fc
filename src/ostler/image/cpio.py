"""A cpio archive in the "newc" form, the one the Linux kernel unpacks as its initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux, and cpio(5). Each entry
is a 110-byte header of hexadecimal fields, the name, and the content, the last two padded to four
bytes. Entries are made from descriptions, never from the inodes of this host: owner is root, inode
numbers count up, the time is a constant, so the same input gives the same bytes and a device node
needs no privilege.

Not modelled: hard links (each file is its own inode) and checksums (form 070702), of which the
kernel needs neither.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from ostler.errors import ConfigError

MAGIC = b"070701"
HEADER_BYTES = 110
TRAILER = "TRAILER!!!"

MAX_FILE_BYTES = 0xFFFF_FFFF  # the size field is eight hexadecimal digits
MAX_NAME_BYTES = 4095  # PATH_MAX of the kernel that unpacks, with the final NUL
BLOCK_BYTES = 512  # cpio(1) pads the archive to its record size

COPY_BYTES = 1 << 20

NodeKind = Literal["char", "block"]
NODE_TYPES: dict[NodeKind, int] = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}


class Archive:
    """Writes entries to `out` as they are added; `close` ends the archive.

    Names are absolute or relative to the archive's root, which is the same thing. Missing parent
    directories are added with mode 0755. A name that is added twice is an error, except a
    directory, which may be there already.

    Args:
        out: where the bytes go; only written, never sought, but by `content`.
        mtime: modification time of every entry, in seconds since 1970.
    """

    def __init__(self, out: BinaryIO, *, mtime: int = 0) -> None:
        self._out = out
        self._mtime = mtime
        self._offset = 0
        self._inode = 0
        self._kinds: dict[str, int] = {}
        self._links: dict[str, str] = {}
        self._files: dict[str, tuple[int, int]] = {}  # where in `out`, and how many bytes

    def __contains__(self, name: str) -> bool:
        return _clean(name) in self._kinds

    def link_target(self, name: str) -> str | None:
        """Where a symbolic link of the archive points, as it was given."""
        return self._links.get(_clean(name))

    def content(self, name: str) -> bytes | None:
        """The bytes of a file of the archive, read back from `out`; `None` where it is none."""
        place = self._files.get(_clean(name))
        if place is None:
            return None
        offset, size = place
        end = self._out.tell()
        self._out.seek(end - self._offset + offset)
        try:
            return self._out.read(size)
        finally:
            self._out.seek(end)

    def add_directory(self, name: str, *, mode: int = 0o755) -> None:
        """Add a directory, unless it is there."""
        path = _clean(name)
        if self._kinds.get(path) == stat.S_IFDIR or not path:
            return
        self._entry(path, stat.S_IFDIR | mode, links=2)

    def add_bytes(self, name: str, content: bytes, *, mode: int = 0o644) -> None:
        """Add a file that holds `content`."""
        self._entry(_clean(name), stat.S_IFREG | mode, size=len(content))
        self._put(content)
        self._pad(4)

    def add_file(self, name: str, source: Path, *, mode: int | None = None) -> None:
        """Add a copy of `source`, with its permissions unless `mode` gives others.

        Raises:
            ConfigError: `source` is missing, unreadable, no regular file, over 4 GiB, or changed
                its size while it was read.
        """
        try:
            with source.open("rb") as file:
                self._copy(name, source, file, mode)
        except OSError as error:
            raise ConfigError(f"{source}: {error.strerror}; name a file that is there") from error

    def add_symlink(self, name: str, target: str) -> None:
        """Add a symbolic link to `target`, which need not be there."""
        content = os.fsencode(target)
        self._entry(_clean(name), stat.S_IFLNK | 0o777, size=len(content))
        self._links[_clean(name)] = target
        self._put(content)
        self._pad(4)

    def add_node(
        self, name: str, kind: NodeKind, major: int, minor: int, *, mode: int = 0o600
    ) -> None:
        """Add a device node, such as `("dev/console", "char", 5, 1)`."""
        self._entry(_clean(name), NODE_TYPES[kind] | mode, device=(major, minor))

    def add_tree(self, source: Path, name: str = "/") -> None:
        """Add what is under the directory `source`, in the order of names, at `name`.

        Symbolic links are kept as links; sockets and pipes are an error; device nodes are kept.
        """
        if not source.is_dir():
            raise ConfigError(f"{source}: not a directory; name the root of a file tree")
        for directory, folders, files in os.walk(source):
            folders.sort()
            at = PurePosixPath(name) / Path(directory).relative_to(source)
            for entry in sorted(folders + files):
                self._add_path(str(at / entry), Path(directory) / entry)

    def close(self) -> None:
        """Write the trailer; nothing can be added afterwards. `out` stays open."""
        self._header(TRAILER, 0, links=1, inode=0, mtime=0)
        self._pad(BLOCK_BYTES)

    def _add_path(self, name: str, source: Path) -> None:
        info = source.lstat()
        permissions = stat.S_IMODE(info.st_mode)
        match stat.S_IFMT(info.st_mode):
            case stat.S_IFDIR:
                self.add_directory(name, mode=permissions)
            case stat.S_IFREG:
                self.add_file(name, source)
            case stat.S_IFLNK:
                self.add_symlink(name, str(source.readlink()))
            case stat.S_IFCHR | stat.S_IFBLK as kind:
                node: NodeKind = "char" if kind == stat.S_IFCHR else "block"
                major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
                self.add_node(name, node, major, minor, mode=permissions)
            case _:
                raise ConfigError(f"{source}: a socket or pipe has no place in an image; remove it")

    def _copy(self, name: str, source: Path, file: BinaryIO, mode: int | None) -> None:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{source}: not a regular file; name one")
        permissions = stat.S_IMODE(info.st_mode) if mode is None else mode
        self._entry(_clean(name), stat.S_IFREG | permissions, size=info.st_size)
        left = info.st_size
        while left and (chunk := file.read(min(left, COPY_BYTES))):
            self._put(chunk)
            left -= len(chunk)
        if left:
            raise ConfigError(f"{source}: became shorter while it was read; try again")
        self._pad(4)

    def _entry(
        self,
        path: str,
        mode: int,
        *,
        size: int = 0,
        links: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        if path in self._kinds:
            raise ConfigError(f"/{path}: two entries of that name; give each its own")
        if size > MAX_FILE_BYTES:
            raise ConfigError(f"/{path}: {size} bytes, an initramfs file ends at 4 GiB; use a disk")
        self._add_parents(path)
        self._kinds[path] = stat.S_IFMT(mode)
        self._inode += 1
        self._header(
            path, mode, size=size, links=links, device=device, inode=self._inode, mtime=self._mtime
        )
        if stat.S_ISREG(mode):
            self._files[path] = (self._offset, size)

    def _add_parents(self, path: str) -> None:
        for parent in reversed(PurePosixPath(path).parents):
            name = "" if str(parent) == "." else str(parent)
            if name and self._kinds.get(name) not in (stat.S_IFDIR, stat.S_IFLNK):
                self.add_directory(name)

    def _header(
        self,
        path: str,
        mode: int,
        *,
        links: int,
        inode: int,
        mtime: int,
        size: int = 0,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        name = os.fsencode(path) + b"\0"
        if len(name) > MAX_NAME_BYTES:
            raise ConfigError(f"/{path[:40]}...: {len(name) - 1} bytes of name, 4094 are allowed")
        owner_and_group = (0, 0)
        host_device = (0, 0)
        values = (
            inode, mode, *owner_and_group, links, mtime, size, *host_device, *device, len(name), 0,
        )  # fmt: skip
        self._put(MAGIC + "".join(f"{value:08X}" for value in values).encode() + name)
        self._pad(4)

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self._offset += len(data)

    def _pad(self, multiple: int) -> None:
        self._put(bytes(-self._offset % multiple))


def _clean(name: str) -> str:
    """`name` without leading slashes and dots; the root is the empty string."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise ConfigError(f"{name!r}: leaves the image's root; give a plain path")
    return "/".join(parts)

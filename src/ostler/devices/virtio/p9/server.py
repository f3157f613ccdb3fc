"""The server's side of 9P2000.L: requests in, replies out; the host is touched by `Tree` only.

Not modelled: authentication, extended attributes but those of users (EOPNOTSUPP), changing owners,
locks that other clients would see: the guest kernel keeps its own.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ostler.devices.virtio.p9 import attributes
from ostler.devices.virtio.p9.attributes import Reading, Writing
from ostler.devices.virtio.p9.tree import Path9, Tree
from ostler.devices.virtio.p9.wire import (
    HEADER,
    NAME_MAX,
    WALK_MAX,
    Fields,
    Malformed,
    Qid,
    T,
    reply,
    text,
)

VERSION = b"9P2000.L"
MAX_MESSAGE_BYTES = 512 << 10
MIN_MESSAGE_BYTES = 4096
MAX_FIDS = 1 << 16
# Each takes a descriptor of our own process.
MAX_OPEN = 512
# Each may take the memory of a whole value.
MAX_ATTRIBUTES = 64
NO_FID = 0xFFFF_FFFF
QID_DIRECTORY, QID_LINK = 0x80, 0x02
AT_REMOVEDIR = 0x200
BASIC_ATTRIBUTES = 0x7FF
LOCK_SUCCESS, LOCK_UNLOCKED = 0, 2
V9FS_MAGIC = 0x0102_1997

SET_MODE, SET_UID, SET_GID, SET_SIZE = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SET_ATIME, SET_MTIME, SET_CTIME, GIVEN_ATIME, GIVEN_MTIME = (1 << bit for bit in range(4, 9))


@dataclass(slots=True)
class Fid:
    """A file as the client holds it: where it is, its descriptor when open, what a listing has.

    Or one of its extended attributes, as it is read or written.
    """

    path: Path9
    fd: int = -1
    entries: list[tuple[bytes, int, Qid]] = field(default_factory=list)
    attribute: Reading | Writing | None = None
    """What it stands for instead of the file."""


class Server:
    """Answers the requests of one client."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._fids: dict[int, Fid] = {}
        self._devices: dict[int, int] = {}
        self._message_bytes = MAX_MESSAGE_BYTES

    def close(self) -> None:
        """Forget every file, as when the client goes."""
        for number in list(self._fids):
            self._clunk(number)

    def answer(self, request: bytes, room: int) -> bytes:
        """The reply to one request, at most `room` bytes; a mistake gets an error number.

        So does a request that leaves no room for its reply, after it was done.
        """
        tag, answer = self._reply(request, room)
        if len(answer) > room:
            answer = self._error(tag, errno.EMSGSIZE)[:room]
        return answer

    def _reply(self, request: bytes, room: int) -> tuple[int, bytes]:
        """The request's tag, and the reply."""
        tag = 0
        try:
            size, kind, tag = HEADER.unpack_from(request)
            if size > len(request):
                raise Malformed
            handler = self._HANDLERS.get(kind)
            if handler is None:
                raise OSError(errno.EOPNOTSUPP, "not offered")
            limit = min(room, self._message_bytes)
            body = handler(self, Fields(request[HEADER.size : size]), limit)
        except (Malformed, struct.error):
            return tag, self._error(tag, errno.EINVAL)
        except OSError as error:
            return tag, self._error(tag, error.errno or errno.EIO)
        return tag, reply(kind, tag, body)

    def _error(self, tag: int, number: int) -> bytes:
        return reply(T.LERROR, tag, struct.pack("<I", number))

    # -- fids ---------------------------------------------------------------------------------

    def _fid(self, number: int) -> Fid:
        try:
            return self._fids[number]
        except KeyError:
            raise OSError(errno.EBADF, "no such fid") from None

    def _open_fid(self, number: int) -> Fid:
        fid = self._fid(number)
        if fid.fd < 0:
            raise OSError(errno.EBADF, "not open")
        return fid

    def _new_fid(self, number: int, path: Path9) -> None:
        if number == NO_FID or number in self._fids:
            raise OSError(errno.EBADF, "fid in use")
        if len(self._fids) >= MAX_FIDS:
            raise OSError(errno.ENFILE, "too many fids")
        self._fids[number] = Fid(path)

    def _opened(self, fid: Fid, open_it: Callable[[], int]) -> None:
        if fid.fd >= 0:
            raise OSError(errno.EBADF, "open already")
        if sum(other.fd >= 0 for other in self._fids.values()) >= MAX_OPEN:
            raise OSError(errno.ENFILE, "too many open files")
        fid.fd = open_it()

    def _clunk(self, number: int) -> None:
        fid = self._fids.pop(number, None)
        if fid is not None and fid.fd >= 0:
            os.close(fid.fd)

    def _moved(self, old: Path9, new: Path9) -> None:
        """Fids of what was renamed, or of what is below it, follow."""
        for fid in self._fids.values():
            if fid.path[: len(old)] == old:
                fid.path = new + fid.path[len(old) :]

    def _stat(self, fid: Fid) -> os.stat_result:
        return os.fstat(fid.fd) if fid.fd >= 0 else self._tree.stat(fid.path)

    def _qid(self, found: os.stat_result) -> Qid:
        # Inode numbers are unique on one file system only; more can be mounted below the top.
        device = self._devices.setdefault(found.st_dev, len(self._devices))
        kind = QID_DIRECTORY if stat.S_ISDIR(found.st_mode) else 0
        kind |= QID_LINK if stat.S_ISLNK(found.st_mode) else 0
        return Qid(kind, found.st_mtime_ns ^ found.st_size << 8, found.st_ino ^ device << 56)

    def _qid_at(self, path: Path9) -> bytes:
        return self._qid(self._tree.stat(path)).pack()

    # -- the session --------------------------------------------------------------------------

    def _version(self, fields: Fields, limit: int) -> bytes:
        wanted, version = fields.number("I"), fields.text()
        self.close()
        if wanted < MIN_MESSAGE_BYTES:
            raise OSError(errno.EMSGSIZE, "messages too small")
        self._message_bytes = min(wanted, MAX_MESSAGE_BYTES)
        known = VERSION if version == VERSION else b"unknown"
        return struct.pack("<I", self._message_bytes) + text(known)

    def _attach(self, fields: Fields, limit: int) -> bytes:
        number, afid = fields.numbers("II")
        fields.text()
        fields.text()
        if afid != NO_FID:
            raise OSError(errno.EBADF, "no authentication")
        self._new_fid(number, ())
        return self._qid_at(())

    def _flush(self, fields: Fields, limit: int) -> bytes:
        return b""  # requests are answered in order: the one to forget has been

    def _walk(self, fields: Fields, limit: int) -> bytes:
        number, new, count = fields.numbers("IIH")
        if count > WALK_MAX:
            raise Malformed
        path, qids = self._fid(number).path, []
        for step in range(count):
            name = fields.text(255)
            try:
                path = self._step(path, name)
                qids.append(self._qid_at(path))
            except OSError:
                if step == 0:
                    raise
                break
        if len(qids) == count:
            if number == new:
                self._clunk(number)
            self._new_fid(new, path)
        return struct.pack("<H", len(qids)) + b"".join(qids)

    def _step(self, path: Path9, name: bytes) -> Path9:
        if name == b"..":
            return path[:-1]
        if not name or name == b"." or b"/" in name:
            raise OSError(errno.EINVAL, "not a name")
        return (*path, name)

    def _do_clunk(self, fields: Fields, limit: int) -> bytes:
        number = fields.number("I")
        attribute = self._fid(number).attribute
        self._clunk(number)
        if isinstance(attribute, Writing):
            attribute.finish(self._tree)
        return b""

    # -- contents -----------------------------------------------------------------------------

    def _lopen(self, fields: Fields, limit: int) -> bytes:
        number, flags = fields.numbers("II")
        fid = self._fid(number)
        self._opened(fid, lambda: self._tree.open_file(fid.path, flags))
        return self._qid(os.fstat(fid.fd)).pack() + bytes(4)

    def _lcreate(self, fields: Fields, limit: int) -> bytes:
        fid, name = self._fid(fields.number("I")), fields.name()
        flags, mode, _ = fields.numbers("III")
        path = (*fid.path, name)
        self._opened(fid, lambda: self._tree.create_file(path, flags, mode))
        fid.path = path
        return self._qid(os.fstat(fid.fd)).pack() + bytes(4)

    def _read(self, fields: Fields, limit: int) -> bytes:
        number, offset, count = fields.numbers("IQI")
        count = min(count, max(limit - HEADER.size - 4, 0))
        attribute = self._fid(number).attribute
        if isinstance(attribute, Reading):
            data = attribute.value[offset : offset + count]
        else:
            data = os.pread(self._open_fid(number).fd, count, _offset(offset))
        return struct.pack("<I", len(data)) + data

    def _write(self, fields: Fields, limit: int) -> bytes:
        number, offset, count = fields.numbers("IQI")
        data = fields.take(count)
        attribute = self._fid(number).attribute
        if isinstance(attribute, Writing):
            return struct.pack("<I", attribute.write(offset, data))
        return struct.pack("<I", os.pwrite(self._open_fid(number).fd, data, _offset(offset)))

    def _fsync(self, fields: Fields, limit: int) -> bytes:
        os.fsync(self._open_fid(fields.number("I")).fd)
        return b""

    def _readdir(self, fields: Fields, limit: int) -> bytes:
        number, offset, count = fields.numbers("IQI")
        fid = self._open_fid(number)
        if offset == 0:
            fid.entries = self._list(fid)
        room = min(count, limit - HEADER.size - 4)
        listed = b""
        for following, (name, kind, qid) in enumerate(fid.entries[offset:], offset + 1):
            entry = qid.pack() + struct.pack("<QB", following, kind) + text(name)
            if len(listed) + len(entry) > room:
                break
            listed += entry
        return struct.pack("<I", len(listed)) + listed

    def _list(self, fid: Fid) -> list[tuple[bytes, int, Qid]]:
        here, above = self._tree.stat(fid.path), self._tree.stat(fid.path[:-1])
        listed = [(b".", stat.S_IFDIR, self._qid(here)), (b"..", stat.S_IFDIR, self._qid(above))]
        for name in os.listdir(fid.fd):
            try:
                found = os.stat(name, dir_fd=fid.fd, follow_symlinks=False)
            except OSError:
                continue  # gone since
            listed.append((os.fsencode(name), stat.S_IFMT(found.st_mode), self._qid(found)))
        return [(name, mode >> 12, qid) for name, mode, qid in listed]

    # -- attributes ---------------------------------------------------------------------------

    def _getattr(self, fields: Fields, limit: int) -> bytes:
        number, _ = fields.numbers("IQ")
        s = self._stat(self._fid(number))
        times = (divmod(ns, 10**9) for ns in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns))
        owner = struct.pack("<III", s.st_mode, s.st_uid, s.st_gid)
        sizes = (s.st_nlink, s.st_rdev, s.st_size, s.st_blksize, s.st_blocks)
        stamps = [part for time in times for part in time]
        rest = struct.pack("<15Q", *sizes, *stamps, 0, 0, 0, 0)
        return struct.pack("<Q", BASIC_ATTRIBUTES) + self._qid(s).pack() + owner + rest

    def _setattr(self, fields: Fields, limit: int) -> bytes:
        number, valid, mode, uid, gid, size, *times = fields.numbers("IIIIIQQQQQ")
        fid = self._fid(number)
        self._tree.changing()
        self._check_owner(fid, valid, uid, gid)
        with self._tree.by_name(fid.path) as name:
            if valid & SET_MODE:
                os.chmod(name, mode & 0o1777)
            if valid & SET_SIZE:
                os.truncate(name, _offset(size))
            if valid & (SET_ATIME | SET_MTIME):
                os.utime(name, ns=self._times(fid, valid, times))
        return b""

    def _check_owner(self, fid: Fid, valid: int, uid: int, gid: int) -> None:
        found = self._stat(fid)
        if (valid & SET_UID and uid != found.st_uid) or (valid & SET_GID and gid != found.st_gid):
            raise OSError(errno.EPERM, "files belong to whoever runs the machine")

    def _times(self, fid: Fid, valid: int, given: list[int]) -> tuple[int, int]:
        found = self._stat(fid)
        now = time.time_ns()
        times = []
        for kept, wanted, told, at in (
            (found.st_atime_ns, SET_ATIME, GIVEN_ATIME, 0),
            (found.st_mtime_ns, SET_MTIME, GIVEN_MTIME, 2),
        ):
            told_ns = min(given[at] * 10**9 + given[at + 1], (1 << 63) - 1)
            times.append(kept if not valid & wanted else told_ns if valid & told else now)
        return times[0], times[1]

    def _statfs(self, fields: Fields, limit: int) -> bytes:
        self._fid(fields.number("I"))
        s = self._tree.statfs()
        counts = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree)
        fsid = s.f_fsid & (1 << 64) - 1
        return struct.pack("<II6QI", V9FS_MAGIC, s.f_frsize, *counts, fsid, s.f_namemax)

    def _xattrwalk(self, fields: Fields, limit: int) -> bytes:
        number, new = fields.numbers("II")
        path = self._fid(number).path
        self._check_attributes()
        attribute = attributes.read(self._tree, path, fields.text(NAME_MAX))
        self._new_fid(new, path)
        self._fids[new].attribute = attribute
        return struct.pack("<Q", len(attribute.value))

    def _xattrcreate(self, fields: Fields, limit: int) -> bytes:
        fid, name = self._fid(fields.number("I")), fields.text(NAME_MAX)
        size, flags = fields.numbers("QI")
        if fid.fd >= 0 or fid.attribute is not None:
            raise OSError(errno.EBADF, "in use already")
        self._check_attributes()
        fid.attribute = attributes.begin(self._tree, fid.path, name, size, flags)
        return b""

    def _check_attributes(self) -> None:
        if sum(fid.attribute is not None for fid in self._fids.values()) >= MAX_ATTRIBUTES:
            raise OSError(errno.ENFILE, "too many attributes at once")

    # -- names --------------------------------------------------------------------------------

    def _symlink(self, fields: Fields, limit: int) -> bytes:
        fid, name, target = self._fid(fields.number("I")), fields.name(), fields.text()
        self._tree.make_link(fid.path, name, target)
        return self._qid_at((*fid.path, name))

    def _mknod(self, fields: Fields, limit: int) -> bytes:
        fid, name = self._fid(fields.number("I")), fields.name()
        self._tree.make_node(fid.path, name, fields.number("I"))
        return self._qid_at((*fid.path, name))

    def _mkdir(self, fields: Fields, limit: int) -> bytes:
        fid, name = self._fid(fields.number("I")), fields.name()
        self._tree.make_directory(fid.path, name, fields.number("I"))
        return self._qid_at((*fid.path, name))

    def _readlink(self, fields: Fields, limit: int) -> bytes:
        return text(self._tree.read_link(self._fid(fields.number("I")).path))

    def _link(self, fields: Fields, limit: int) -> bytes:
        parent, fid = (self._fid(number) for number in fields.numbers("II"))
        self._tree.hard_link(_below(fid.path), parent.path, fields.name())
        return b""

    def _rename(self, fields: Fields, limit: int) -> bytes:
        fid, parent = (self._fid(number) for number in fields.numbers("II"))
        return self._rename_to(_below(fid.path), parent, fields.name())

    def _renameat(self, fields: Fields, limit: int) -> bytes:
        old, old_name = self._fid(fields.number("I")), fields.name()
        new, new_name = self._fid(fields.number("I")), fields.name()
        return self._rename_to((*old.path, old_name), new, new_name)

    def _rename_to(self, old: Path9, parent: Fid, name: bytes) -> bytes:
        self._tree.rename(old, parent.path, name)
        self._moved(old, (*parent.path, name))
        return b""

    def _unlinkat(self, fields: Fields, limit: int) -> bytes:
        fid, name = self._fid(fields.number("I")), fields.name()
        directory = bool(fields.number("I") & AT_REMOVEDIR)
        self._tree.remove((*fid.path, name), directory=directory)
        return b""

    def _remove(self, fields: Fields, limit: int) -> bytes:
        number = fields.number("I")
        fid = self._fid(number)
        try:
            directory = stat.S_ISDIR(self._tree.stat(fid.path).st_mode)
            self._tree.remove(_below(fid.path), directory=directory)
        finally:
            self._clunk(number)  # whether or not that went well
        return b""

    # -- locks --------------------------------------------------------------------------------

    def _lock(self, fields: Fields, limit: int) -> bytes:
        self._fid(fields.number("I"))
        return bytes([LOCK_SUCCESS])

    def _getlock(self, fields: Fields, limit: int) -> bytes:
        number, _, start, length, process = fields.numbers("IBQQI")
        self._fid(number)
        where = struct.pack("<BQQI", LOCK_UNLOCKED, start, length, process)
        return where + text(fields.text())

    _HANDLERS: dict[int, Callable[[Server, Fields, int], bytes]] = {  # noqa: RUF012
        T.STATFS: _statfs,
        T.LOPEN: _lopen,
        T.LCREATE: _lcreate,
        T.SYMLINK: _symlink,
        T.MKNOD: _mknod,
        T.RENAME: _rename,
        T.READLINK: _readlink,
        T.GETATTR: _getattr,
        T.SETATTR: _setattr,
        T.XATTRWALK: _xattrwalk,
        T.XATTRCREATE: _xattrcreate,
        T.READDIR: _readdir,
        T.FSYNC: _fsync,
        T.LOCK: _lock,
        T.GETLOCK: _getlock,
        T.LINK: _link,
        T.MKDIR: _mkdir,
        T.RENAMEAT: _renameat,
        T.UNLINKAT: _unlinkat,
        T.VERSION: _version,
        T.ATTACH: _attach,
        T.FLUSH: _flush,
        T.WALK: _walk,
        T.READ: _read,
        T.WRITE: _write,
        T.CLUNK: _do_clunk,
        T.REMOVE: _remove,
    }


def _below(path: Path9) -> Path9:
    """`path`, which is not the top itself: that has no name to move or remove."""
    if not path:
        raise OSError(errno.EBUSY, "the shared directory itself")
    return path


def _offset(value: int) -> int:
    if value >= 1 << 63:
        raise OSError(errno.EFBIG, "past the end of any file")
    return value

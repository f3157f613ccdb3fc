"""The file that a copy becomes: half of it never has the target's name.

A copy is written into `NAME.part`, which gets the name when all of it is there. Until then a file
of that name stays what it was, also if the process is killed. Only what cannot be exchanged for
another file is overwritten where it is: devices, exports, links, files with several names, with
extended attributes, or whose owner or directory is not ours.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ostler.block.image import local_name, remove_quietly
from ostler.errors import DiskError, HostError

if TYPE_CHECKING:
    from ostler.block.image import ImageFile


# What SELinux sets on every file; a new one gets that of its folder.
GIVEN_BY_THE_FOLDER = "security.selinux"


class Target:
    """Where the copy `name` is written; without `create` it is what is there already.

    `DiskError` if a program uses the file that it replaces.
    """

    def __init__(self, name: str, *, create: bool = True) -> None:
        self._file = local_name(name) if create else None
        self.name, self.now = name, name
        """`now` is the name it has meanwhile."""
        self._is_new = self._file is not None and not os.path.lexists(self._file)
        self._replaced: ImageFile | None = None
        self._is_made = False
        """`now` is a file that was made for this copy: it may be removed."""
        if self._file is not None:
            self._move_beside(self._file)

    def _move_beside(self, file: str) -> None:
        part = f"{file}.part"
        if self._is_new:
            self.now = part
            # What is in the way of that is told by who makes the image in it.
            with suppress(OSError):
                os.close(_make_alone(part, 0o666))
                self._is_made = True
        elif _is_plain(file):
            from ostler.block.registry import open_file

            # Nobody uses it, and nobody will until it is another.
            self._replaced = open_file(file, readonly=False)
            try:
                self._is_made = _make_like(part, file)
            finally:
                if self._is_made:
                    self.now = part
                else:
                    self._let_go()

    def _let_go(self) -> None:
        if self._replaced is not None:
            self._replaced.close()
            self._replaced = None

    @property
    def _moves(self) -> bool:
        return self.now != self.name

    @contextmanager
    def begun(self) -> Iterator[None]:
        """While the empty image is made: a failure leaves what was there."""
        try:
            with self._named():
                yield
        except BaseException:
            if self._is_made:
                remove_quietly(self.now)
            self._let_go()
            raise

    @contextmanager
    def finished(self, *, lasting: bool) -> Iterator[None]:
        """While it is filled: then the target has its name, after a failure nothing of it is there.

        `lasting`: it has it after a crash of the host, too.
        """
        try:
            with self._named():
                yield
            if self._moves:
                self._take_name(lasting)
        except BaseException:
            if self._moves:
                remove_quietly(self.now)
            elif self._file is not None and os.path.isfile(self._file):
                # What is told is why it failed, whether this does or not.
                with suppress(OSError):
                    os.truncate(self._file, 0)
            raise
        finally:
            self._let_go()

    def _take_name(self, lasting: bool) -> None:
        assert self._file is not None
        if self._is_new:
            rename_new(self.now, self._file, lasting=lasting)
            return
        try:
            os.replace(self.now, self._file)
        except OSError as error:
            raise DiskError(f"{self.name}: cannot be replaced: {error.strerror}") from None
        if lasting:
            _sync_folder(self._file)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors have the name that the target was given."""
        try:
            yield
        except (DiskError, HostError) as error:
            if not self._moves or self.now not in str(error):
                raise
            raise type(error)(str(error).replace(self.now, self.name)) from error


def _is_plain(file: str) -> bool:
    """Whether another file can be all that this one is: no link, one name, no attributes."""
    try:
        facts = os.lstat(file)
        attributes = set(os.listxattr(file)) - {GIVEN_BY_THE_FOLDER}
        return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1 and not attributes
    except OSError:
        return False


def _make_like(part: str, file: str) -> bool:
    """Whether there is a file `part` now that has the owner and the permissions of `file`."""
    try:
        fd = _make_alone(part, 0o600)
    except OSError:
        return False
    try:
        facts = os.stat(file)
        os.fchown(fd, facts.st_uid, facts.st_gid)
        os.fchmod(fd, stat.S_IMODE(facts.st_mode))
    except OSError:
        remove_quietly(part)
        return False
    finally:
        os.close(fd)
    return True


def _make_alone(part: str, mode: int) -> int:
    """A descriptor of a file that was not there: not what a link leads to, nor what others write.

    What a copy that was killed left there is removed. `DiskError` if it is something else, or used.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(part, flags, mode)
    except FileExistsError:
        _remove_leftover(part)
    return os.open(part, flags, mode)


def _remove_leftover(part: str) -> None:
    from ostler.block.registry import open_file

    if not stat.S_ISREG(os.lstat(part).st_mode):
        raise DiskError(f"{part}: in the way, as the copy is written there first; remove it")
    open_file(part, readonly=False).close()
    os.unlink(part)


def rename_new(name: str, target: str, *, lasting: bool) -> None:
    """Give a file that is whole its name, which nothing else has; `lasting` outlives the host."""
    try:
        os.link(name, target)
        os.unlink(name)
    except FileExistsError:
        raise DiskError(f"{target}: somebody made it meanwhile; give another target") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP) or os.path.lexists(target):
            raise DiskError(f"{target}: cannot be made: {error.strerror}") from None
        # A file system without hard links.
        os.rename(name, target)
    if lasting:
        _sync_folder(target)


def _sync_folder(of: str) -> None:
    fd = os.open(os.path.dirname(of) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

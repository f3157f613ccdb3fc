"""Files and bytes the user hands in, as one read-only memory view.

A regular file is mapped, not read: an initrd of hundreds of megabytes then costs no copy.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from ostler.errors import KernelError
from ostler.firmware.plan import Buffer

Source = Buffer | str | os.PathLike[str]

PIPE_LIMIT = 1 << 30


def name_of(source: Source) -> str:
    """How messages call `source`: its path, or what it is."""
    return (
        "the image"
        if isinstance(source, bytes | bytearray | memoryview)
        else repr(os.fspath(source))
    )


def view(source: Source, what: str) -> memoryview:
    """The bytes of `source`; `what` (`kernel`, `initrd`) names it in the `KernelError`."""
    if isinstance(source, bytes | bytearray | memoryview):
        data = memoryview(source).cast("B")
    else:
        data = _file(Path(source), what)
    if not data:
        raise KernelError(
            f"{what} {name_of(source)} is empty; give the file itself, not a placeholder"
        )
    return data


def _file(path: Path, what: str) -> memoryview:
    try:
        with open(path, "rb") as file:
            return _contents(file.fileno(), path, what)
    except FileNotFoundError:
        raise KernelError(f"{what} {str(path)!r} does not exist; check the path") from None
    except IsADirectoryError:
        raise KernelError(f"{what} {str(path)!r} is a directory; give the file in it") from None
    except PermissionError:
        raise KernelError(
            f"{what} {str(path)!r} may not be read; check its permissions (chmod +r)"
        ) from None
    except (OSError, ValueError) as error:
        raise KernelError(
            f"{what} {str(path)!r} cannot be read: {error}; check the path and the disk"
        ) from None


def _contents(fd: int, path: Path, what: str) -> memoryview:
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return (
            memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
            if status.st_size
            else memoryview(b"")
        )
    if stat.S_ISFIFO(status.st_mode):
        return _drain(fd, path, what)
    raise KernelError(
        f"{what} {str(path)!r} is a device, not a file; give a regular file or a pipe"
    )


def _drain(fd: int, path: Path, what: str) -> memoryview:
    data = bytearray()
    while chunk := os.read(fd, 1 << 20):
        data += chunk
        if len(data) > PIPE_LIMIT:
            raise KernelError(
                f"{what} {str(path)!r} gives more than {PIPE_LIMIT >> 20} MiB; give a regular file"
            )
    return memoryview(data)

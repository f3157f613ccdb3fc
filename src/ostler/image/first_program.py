"""Whether an image has what its first program is started by.

Linux starts `/init` as any program: a script by the interpreter in its first line, a program linked
to shared libraries by the loader that it names. Where one of them is missing, the kernel panics
with no more than an error number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ostler.image import elf
from ostler.image.cpio import Archive

FIRST = "/init"
SHEBANG = b"#!"
# Linux follows four interpreters and forty links, then it gives up.
MAX_INTERPRETERS = 5
MAX_LINKS = 40


def problem(archive: Archive) -> str | None:
    """Why Linux could not start `/init`, with the cure; `None` where it can, or there is none."""
    return next(_problems(archive), None) if FIRST in archive else None


def _problems(archive: Archive) -> Iterator[str]:
    name = FIRST
    for _ in range(MAX_INTERPRETERS):
        content = _content(archive, name)
        if content is None:
            return
        if content.startswith(SHEBANG):
            by, cure = _shebang(content), "add it with --file, /bin/busybox:/bin/busybox say"
        elif content.startswith(elf.MAGIC):
            by = elf.interpreter(content)
            cure = "add it and the libraries that ldd shows, or take a statically linked program"
        else:
            yield f"{name} is neither a program nor a script that begins with #!; Linux will panic"
            return
        if by is None:
            return
        if _resolve(archive, by) is None:
            yield f"{name} is started by {by}, which is not in the image; {cure}"
            return
        name = by


def _content(archive: Archive, name: str) -> bytes | None:
    path = _resolve(archive, name)
    return None if path is None else archive.content(path)


def _shebang(content: bytes) -> str | None:
    words = content[len(SHEBANG) :].split(b"\n", 1)[0].split()
    return words[0].decode(errors="surrogateescape") if words else None


def _resolve(archive: Archive, name: str) -> str | None:
    """Where `name` leads to in the archive, links followed; `None` where that is nowhere."""
    left = [part for part in name.split("/") if part]
    at: list[str] = []
    links = 0
    while left:
        part = left.pop(0)
        if part == "..":
            del at[-1:]
        elif part != ".":
            at.append(part)
        target = archive.link_target("/".join(at)) if at else None
        if target is None:
            continue
        links += 1
        if links > MAX_LINKS:
            return None
        base = [] if target.startswith("/") else at[:-1]
        left = [part for part in PurePosixPath(target).parts if part != "/"] + left
        at = base
    path = "/".join(at)
    return path if path in archive else None

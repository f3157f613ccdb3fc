"""Unpacks Debian packages under `build/guests/packages/`; installs nothing.

What has been unpacked is used again without asking the archive, so a second run works offline.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUILD = Path(__file__).resolve().parents[1] / "build" / "guests"
PACKAGES = BUILD / "packages"

APT_AS_CALLER = ("-o", "APT::Sandbox::User=root")


class FetchError(Exception):
    """A package cannot be had; the message says which and what to do."""


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold the lock `name` among processes: two test runs must not unpack the same package."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def unpack(name: str) -> Path:
    """The directory in which the Debian package `name` lies unpacked.

    Raises:
        FetchError: the archive has no such package, or cannot be reached.
    """
    target = PACKAGES / name
    with only_one("packages"):
        if not target.exists():
            _unpack_into(name, target)
    return target


def dependency(name: str, pattern: str) -> str:
    """The first package that the newest `name` depends on whose name matches `pattern`.

    The answer is kept under `build/`; delete that to ask again.
    """
    note = PACKAGES / f"{name}.depends"
    with only_one("packages"):
        if not note.exists():
            PACKAGES.mkdir(parents=True, exist_ok=True)
            note.write_text(_ask_depends(name))
        depends = note.read_text()
    for part in re.split(r"[,|]", depends):
        candidate = part.split("(")[0].strip()
        if re.fullmatch(pattern, candidate):
            return candidate
    raise FetchError(f"{name}: depends on nothing like {pattern!r} but {depends!r}")


def _ask_depends(name: str) -> str:
    shown = _with_lists(["apt-cache", "show", "--no-all-versions", name], name)
    for line in shown.splitlines():
        if line.startswith("Depends: "):
            return line.removeprefix("Depends: ")
    raise FetchError(f"{name}: its package record names no dependency")


def _unpack_into(name: str, target: Path) -> None:
    work = target.with_name(f".{name}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        _with_lists(["apt-get", *APT_AS_CALLER, "download", "-qq", name], name, work)
        archive = next(work.glob("*.deb"))
        _run(["dpkg-deb", "-x", str(archive), str(work / "root")], work)
        (work / "root").rename(target)
    finally:
        shutil.rmtree(work)


def _with_lists(command: list[str], name: str, directory: Path | None = None) -> str:
    """Run `command`; where it fails, fetch the package lists once and run it again."""
    first = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if first.returncode == 0:
        return first.stdout
    subprocess.run(["apt-get", "update", "-qq"], capture_output=True)
    second = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if second.returncode:
        reason = second.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise FetchError(f"{name}: {reason[0]}; check the sources with apt-cache policy {name}")
    return second.stdout


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise FetchError(f"{command[0]}: {done.stderr.strip()}")

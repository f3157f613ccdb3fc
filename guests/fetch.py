"""The stock programs that tests and the demo start, by what they are.

`python -m guests.fetch` fetches all of them; with names, those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from guests.packages import FetchError, dependency, unpack

Flavour = Literal["cloud", "full"]
META_PACKAGES: dict[Flavour, str] = {
    "cloud": "linux-image-cloud-amd64",
    "full": "linux-image-amd64",
}


@dataclass(frozen=True)
class Kernel:
    """An unpacked Debian kernel: `image` is its bzImage, `modules` its /lib/modules/VERSION."""

    version: str
    image: Path
    modules: Path


@cache
def kernel(flavour: Flavour) -> Kernel:
    """The newest stock kernel of that flavour."""
    package = dependency(META_PACKAGES[flavour], r"linux-image-\d.*")
    root = unpack(package)
    version = package.removeprefix("linux-image-").removesuffix("-unsigned")
    modules = _first(root / "lib/modules" / version, root / "usr/lib/modules" / version)
    return Kernel(version, _first(root / f"boot/vmlinuz-{version}"), modules)


@cache
def busybox() -> Path:
    """The statically linked busybox."""
    root = unpack("busybox-static")
    return _first(root / "bin/busybox", root / "usr/bin/busybox")


@cache
def memtest() -> Path:
    """memtest86+ in the form that starts like a Linux kernel."""
    return _first(unpack("memtest86+") / "boot/memtest86+x64.bin")


@cache
def invaders() -> Path:
    """A multiboot game of 7.5 kB that draws on the VGA text screen."""
    return _first(unpack("grub-invaders") / "boot/invaders.exec")


def _first(*candidates: Path) -> Path:
    for path in candidates:
        if path.exists():
            return path
    raise FetchError(f"{candidates[0]}: not in its package; delete build/guests and try again")


FETCHERS: dict[str, Callable[[], Path]] = {
    "cloud-kernel": lambda: kernel("cloud").image,
    "full-kernel": lambda: kernel("full").image,
    "busybox": busybox,
    "memtest": memtest,
    "invaders": invaders,
}


def main(names: list[str]) -> int:
    """Fetch `names`, or all, and print where each is."""
    unknown = set(names) - FETCHERS.keys()
    if unknown:
        print(f"{', '.join(unknown)}: unknown; known are {', '.join(FETCHERS)}", file=sys.stderr)
        return 2
    try:
        for name in names or FETCHERS:
            print(f"{name:14}{FETCHERS[name]()}")
    except FetchError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A Debian root disk with systemd, made by mmdebstrap; root logs in without a password.

`python -m guests.rootfs` makes it and prints where it is, under `build/guests`; about 450 MiB.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from guests.images import ext4_of_tree
from guests.packages import BUILD, FetchError, only_one

SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv", "udev", "login", "kmod", "iproute2", "dbus", "apt", "ethtool", "iperf3",
)  # fmt: skip
SIZE_BYTES = 768 << 20
# Programs that work hard and check what they do, and a compiler.
WORK = ("stress-ng", "openssl", "gcc", "libc6-dev", "make")
WORK_BYTES = 1536 << 20

CUSTOMIZE = (
    'chroot "$1" passwd -d root',
    'echo guest > "$1/etc/hostname"',
    'echo "/dev/vda / ext4 defaults 0 1" > "$1/etc/fstab"',
    'rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/usr/share/doc/*',
)


def debian() -> Path:
    """The disk image; made on the first call, which takes about a minute.

    Raises:
        FetchError: mmdebstrap is missing, or says why it cannot.
    """
    return _made(PACKAGES, SIZE_BYTES)


def debian_for_work() -> Path:
    """As `debian`, with stress-ng, openssl and a C compiler; a few minutes."""
    return _made((*PACKAGES, *WORK), WORK_BYTES)


def _made(packages: tuple[str, ...], size_bytes: int) -> Path:
    wanted = zlib.crc32(" ".join(packages).encode())
    target = BUILD / f"debian-{SUITE}-{wanted:08x}.img"
    with only_one("rootfs"):
        if not target.exists():
            _make(target, packages, size_bytes)
    return target


def _make(target: Path, packages: tuple[str, ...], size_bytes: int) -> None:
    tool = shutil.which("mmdebstrap")
    if tool is None:
        raise FetchError("mmdebstrap: missing; apt-get install mmdebstrap")
    hooks = [f"--customize-hook={line}" for line in CUSTOMIZE]
    with tempfile.TemporaryDirectory(dir=BUILD) as work:
        root = Path(work, "root")
        done = subprocess.run(
            [
                tool, "--quiet", "--variant=essential", f"--include={','.join(packages)}",
                *hooks, SUITE, str(root), *_sources(),
            ],
            capture_output=True,
            text=True,
        )  # fmt: skip
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise FetchError(f"mmdebstrap: {reason[0]}")
        finished = Path(work, "disk.img")
        ext4_of_tree(finished, root, size_bytes)
        finished.rename(target)


def _sources() -> list[str]:
    """This machine's own package sources of Debian, if it keeps them apart; else mmdebstrap's."""
    own = Path("/etc/apt/sources.list.d/debian.sources")
    return [str(own)] if own.exists() else []


if __name__ == "__main__":
    try:
        print(debian())
    except FetchError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

"""A disk with this host's fio and the libraries it needs, for guests to change their root to."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import zlib
from pathlib import Path

from guests.images import ext4_of_tree
from guests.packages import BUILD, FetchError, only_one

SIZE_BYTES = 160 << 20
MOUNT_POINTS = ("dev", "proc", "sys", "tmp")


def fio_disk() -> Path:
    """An ext4 disk; a guest mounts it, and `/dev` in it, and runs `chroot DIRECTORY fio ...`.

    Raises:
        FetchError: this host has no fio.
    """
    program = shutil.which("fio")
    if program is None:
        raise FetchError("fio: missing; apt-get install fio")
    told = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", told)
    target = BUILD / f"fio-{zlib.crc32(told.split('(', 1)[0].encode() + program.encode()):08x}.img"
    with only_one("fio"):
        if not target.exists():
            _make(target, [program, *libraries])
    return target


def _make(target: Path, files: list[str]) -> None:
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        root = Path(directory, "root")
        for name in MOUNT_POINTS:
            root.joinpath(name).mkdir(parents=True)
        for file in files:
            # By the name that the loader looks for, whatever links lead to it here.
            place = root / file.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        made = Path(directory, "disk")
        ext4_of_tree(made, root, SIZE_BYTES)
        made.rename(target)

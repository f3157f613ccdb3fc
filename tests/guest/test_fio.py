"""fio in a guest writes, reads back and verifies; the host's fio verifies what is on the disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stock import SLOWER, Boot, start_shell

from guests.fetch import Kernel
from guests.fio import fio_disk
from ostler.block import create_image

pytestmark = pytest.mark.guest

MIB = 1 << 20
SIZE = 12 * MIB
MODES = ("writeback", "writethrough", "none", "directsync", "unsafe")
FORMATS = ("raw", "qcow2")
# Blocks of several sizes at random places, each with a checksum of its own.
JOB = (
    f"--name=v --size={SIZE} --rw=randwrite --bsrange=4k-64k --randseed=7"
    " --verify=crc32c --verify_fatal=1 --iodepth=8 --ioengine=psync --direct=1 --fsync=16"
)
FIO = "/usr/bin/fio"
JOB_S = 300 * SLOWER
"""A loaded machine takes a minute for all of them."""


def takes_direct(directory: Path) -> bool:
    """Whether files there can be opened with O_DIRECT."""
    path = directory / "direct"
    path.touch()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def disks(directory: Path) -> Iterator[tuple[Path, str, str]]:
    """An image of each format for each cache mode that its file system has."""
    for mode in MODES:
        if mode in ("none", "directsync") and not takes_direct(directory):
            continue
        for format in FORMATS:
            path = directory / f"{mode}.{format}"
            create_image(path, SIZE, format=format)
            yield path, format, mode


def host_verifies(path: Path, format: str) -> None:
    """QEMU finds the image sound, and fio on this host finds every checksum on it."""
    raw = path
    if format == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", path], check=True)
        raw = path.with_suffix(".converted")
        subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    verify = [FIO, *JOB.split(), "--verify_only", f"--filename={raw}"]
    told = subprocess.run(
        [word for word in verify if word != "--direct=1"],
        cwd=path.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, f"{path.name}: {told.stdout}{told.stderr}"


def test_fio_verifies_what_it_wrote_in_every_cache_mode(
    boot: Boot, cloud: Kernel, tmp_path: Path
) -> None:
    made = list(disks(tmp_path))
    tested = [f"{path},format={format},cache={mode}" for path, format, mode in made]
    # The first one in two queues, and each other with split rings.
    tested[0] += ",queues=2"
    tested = [disk + (",packed=off" if number % 2 else "") for number, disk in enumerate(tested)]
    tools = f"{fio_disk()},format=raw,readonly=on"
    vm = start_shell(boot, cloud, disks=[tools, *tested], net="none")
    vm.serial.run(
        "mount -o ro /dev/vda /mnt; mount -o bind /dev /mnt/dev; mount -t proc p /mnt/proc"
    )
    vm.serial.run("mount -t tmpfs t /mnt/tmp")
    for number, (path, _, _) in enumerate(made):
        device = f"/dev/vd{chr(ord('b') + number)}"
        command = f"cd /mnt/tmp; chroot /mnt {FIO} {JOB} --filename={device} >/tmp/told 2>&1"
        said = vm.serial.run(f"{command}; echo code=$?; tail -n 20 /tmp/told", timeout=JOB_S)
        assert "code=0" in said, f"{path.name}: {said}"
    vm.stop()
    for path, format, _ in made:
        host_verifies(path, format)

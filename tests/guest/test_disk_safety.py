"""A guest that has synced and is then killed with SIGKILL finds every synced byte again."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest
from stock import Boot, process, start_shell

from guests.fetch import Kernel

pytestmark = pytest.mark.guest

WRITE = (
    "mount /dev/vda /mnt; dd if=/dev/urandom of=/mnt/data bs=64k count=48 2>/dev/null;"
    " sync; sha256sum /mnt/data; echo syn''ced"
)
DIGEST = re.compile(r"[0-9a-f]{64}  /mnt/data$")


def test_bytes_synced_before_sigkill_are_there_in_the_next_boot(
    boot: Boot, cloud: Kernel, disk: Path
) -> None:
    digest = _write_sync_and_kill(cloud, disk)
    vm = start_shell(boot, cloud, disks=[disk])
    vm.serial.run("mount /dev/vda /mnt")
    assert vm.serial.run("sha256sum /mnt/data").split()[0] == digest


def test_disk_image_after_sigkill_passes_fsck(cloud: Kernel, disk: Path) -> None:
    _write_sync_and_kill(cloud, disk)
    subprocess.run(["e2fsck", "-p", str(disk)], check=False, capture_output=True)
    clean = subprocess.run(["e2fsck", "-f", "-n", str(disk)], capture_output=True, text=True)
    assert clean.returncode == 0, clean.stdout


def _write_sync_and_kill(kernel: Kernel, disk: Path) -> str:
    """Have a guest write and sync; kill its process the moment it says so; its hash of the file."""
    with process(kernel, "--disk", str(disk)) as guest:
        guest.wait_until_ready()
        guest.type(WRITE)
        digest = ""
        for line in guest.lines():
            if DIGEST.match(line):
                digest = line.split()[0]
            if line == "synced":
                guest.popen.send_signal(signal.SIGKILL)
                break
    assert digest
    return digest

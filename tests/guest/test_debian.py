"""A Debian root disk made by mmdebstrap: systemd brings it to its login prompt."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from stock import Boot, log_in

from guests.fetch import Kernel
from guests.rootfs import debian

pytestmark = pytest.mark.guest


def test_debian_disk_reaches_login_and_powers_off(
    boot: Boot, cloud: Kernel, tmp_path: Path
) -> None:
    disk = tmp_path / "debian.img"
    subprocess.run(["cp", "--sparse=always", str(debian()), str(disk)], check=True)
    vm = log_in(boot, cloud, [disk])
    assert (
        vm.serial.run("systemctl is-system-running --wait", timeout=300, check=False).strip()
        == "running"
    )
    assert vm.serial.run("cat /proc/1/comm").strip() == "systemd"
    assert vm.serial.run("findmnt -no SOURCE /").strip() == "/dev/vda"
    assert vm.serial.run("systemd-detect-virt").strip() == "kvm"
    vm.serial.write("poweroff\n")
    assert vm.wait(timeout=180).exit_code == 0

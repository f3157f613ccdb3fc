"""A guest on disks of every kind: qcow2, over a backing file, thrown away at the end."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
from pathlib import Path

import pytest
from stock import ACCELERATOR, END_S, Boot, process, start_shell

from guests.fetch import Kernel
from guests.images import initrd
from ostler.block import create_image, open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.jobs.convert import convert

pytestmark = pytest.mark.guest

WRITE = (
    "mount /dev/vda /mnt; dd if=/dev/urandom of=/mnt/data bs=64k count=48 2>/dev/null;"
    " sync; sha256sum /mnt/data; echo syn''ced"
)


@pytest.fixture
def qcow2(disk: Path, tmp_path: Path) -> Path:
    """The disk with a file system as qcow2."""
    path = tmp_path / "disk.qcow2"
    with open_image(disk, format="raw", readonly=True) as source:
        convert([source], path, format="qcow2").wait()
    return path


def check(path: Path) -> None:
    """Neither we nor QEMU find anything wrong."""
    with open_image(path, readonly=True) as image:
        assert isinstance(image, Qcow2Image)
        assert image.check().is_sound
    subprocess.run(["qemu-img", "check", path], check=True, capture_output=True)


def test_guest_keeps_what_it_wrote_to_qcow2(boot: Boot, cloud: Kernel, qcow2: Path) -> None:
    vm = start_shell(boot, cloud, disks=[qcow2])
    vm.serial.run("mount /dev/vda /mnt")
    vm.serial.run("dd if=/dev/urandom of=/mnt/data bs=64k count=48; sync")
    digest = vm.serial.run("sha256sum /mnt/data").split()[0]
    vm.serial.run("umount /mnt")
    vm.stop()
    check(qcow2)
    overlay = qcow2.with_name("overlay.qcow2")
    create_image(overlay, 1 << 40, backing_file="disk.qcow2", backing_fmt="qcow2")
    vm = start_shell(boot, cloud, disks=[overlay, f"{qcow2},overlay=on"])
    vm.serial.run("mount /dev/vda /mnt")
    assert vm.serial.run("sha256sum /mnt/data").split()[0] == digest
    vm.serial.run("rm /mnt/data; sync; mkdir /b; mount /dev/vdb /b; rm /b/data; sync")
    assert "No such file" in vm.serial.run("cat /b/data", check=False)
    vm.stop()
    check(overlay)
    vm = start_shell(boot, cloud, disks=[qcow2])
    vm.serial.run("mount /dev/vda /mnt")
    assert vm.serial.run("sha256sum /mnt/data").split()[0] == digest


def test_qcow2_after_sigkill_has_what_was_synced_and_is_sound(
    boot: Boot, cloud: Kernel, qcow2: Path
) -> None:
    with process(cloud, "--disk", str(qcow2)) as guest:
        guest.wait_until_ready()
        guest.type(WRITE)
        digest = ""
        for line in guest.lines():
            if line.endswith("/mnt/data") and len(line.split()[0]) == 64:
                digest = line.split()[0]
            if line == "synced":
                guest.popen.send_signal(signal.SIGKILL)
                break
    assert digest
    code = subprocess.run(["qemu-img", "check", qcow2], capture_output=True, check=False).returncode
    assert code in (0, 3)  # sound, or leaks only
    vm = start_shell(boot, cloud, disks=[qcow2])
    vm.serial.run("mount /dev/vda /mnt")
    assert vm.serial.run("sha256sum /mnt/data").split()[0] == digest


@pytest.mark.parametrize("bus", ["virtio", "scsi"])
def test_guest_sees_its_disk_grow_while_it_is_mounted(
    boot: Boot, cloud: Kernel, qcow2: Path, bus: str
) -> None:
    name = "vda" if bus == "virtio" else "sda"
    image = initrd(cloud, drivers=() if bus == "virtio" else ("virtio_scsi", "sd_mod"))
    vm = start_shell(boot, cloud, initrd=image, disks=[f"{qcow2},bus={bus}"], net="none")
    vm.serial.run(f"until [ -b /dev/{name} ]; do sleep 0.1; done", timeout=END_S)
    before = vm.disks[0].disk.size_bytes
    vm.serial.run(f"mount /dev/{name} /mnt")
    vm.disks[0].resize(before + (64 << 20))
    sectors = (before >> 9) + (64 << 11)
    until = f"until [ $(cat /sys/block/{name}/size) = {sectors} ]; do sleep 0.1; done"
    vm.serial.run(until, timeout=END_S)
    copy = f"dd if=/dev/urandom of=/dev/{name} bs=1M seek={before >> 20} count=64 conv=fsync"
    vm.serial.run(copy)
    digest = vm.serial.run(
        f"dd if=/dev/{name} bs=1M skip={before >> 20} count=64 2>/dev/null | sha256sum"
    ).split()[0]
    vm.serial.run("umount /mnt")
    vm.stop()
    check(qcow2)
    with open_image(qcow2, readonly=True) as disk:
        assert hashlib.sha256(disk.read(before, 64 << 20)).hexdigest() == digest


def test_examples_of_disks_in_use_do_what_they_say(
    cloud: Kernel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = Path(__file__).parents[2].joinpath("docs/disks-in-use.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for written, here in (
        ("build/demo/vmlinuz", str(cloud.image)),
        ("build/demo/initrd.gz", str(initrd(cloud))),
        ('append="console', f'accelerator="{ACCELERATOR}", net="none", append="console'),
    ):
        first, second = (text.replace(written, here) for text in (first, second))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(first, names)
    assert str(tmp_path / "moved.raw") in capsys.readouterr().out
    for name in ("disk", "today", "tomorrow", "full"):
        check(tmp_path / f"{name}.qcow2")
    subprocess.run(["qemu-img", "bitmap", "--add", "disk.qcow2", "daily"], check=True)
    exec(second, names)
    subprocess.run(["qemu-img", "compare", "disk.qcow2", "tuesday.qcow2"], check=True)

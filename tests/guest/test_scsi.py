"""Linux's virtio_scsi with its drivers of disks and CD-ROMs."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from stock import END_S, GREETING, Boot, start_shell

import ostler
from guests.fetch import Kernel
from guests.images import ext4, initrd
from ostler.config import DiskConfig, MachineConfig
from ostler.machine.disks import open_disks

pytestmark = pytest.mark.guest

MIB = 1 << 20
BLOB = hashlib.shake_128(b"scsi").digest(MIB + 2048)
BLOB_DIGEST = hashlib.sha256(BLOB).hexdigest()
SIZE = 64 * MIB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return ext4(tmp_path / "root.img", {"greeting": GREETING}, SIZE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    return path


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    path = tmp_path / "disc.iso"
    path.write_bytes(BLOB)
    return path


def start(boot: Boot, kernel: Kernel, *disks: str) -> ostler.VM:
    image = initrd(kernel, drivers=("virtio_scsi", "sd_mod", "sr_mod"))
    return start_shell(boot, kernel, initrd=image, disks=disks, net="none")


def places(vm: ostler.VM) -> dict[str, str]:
    """Block devices by channel, target and unit."""
    command = "cd /sys/class/scsi_device; for d in *; do echo ${d#*:} $(ls $d/device/block); done"
    lines = [line.split() for line in vm.serial.run(command).splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}


def wait(vm: ostler.VM, condition: str) -> None:
    vm.serial.run(f"until {condition}; do sleep 0.1; done", timeout=END_S)


@pytest.mark.parametrize("layout", ["on", "off"])
def test_disks_and_discs_are_found_read_written_and_trimmed(
    boot: Boot, cloud: Kernel, root: Path, data: Path, disc: Path, layout: str
) -> None:
    vm = start(
        boot,
        cloud,
        f"{root},bus=scsi,packed={layout},serial=ROOT",
        f"{data},bus=scsi,target=5,lun=3,cache=writethrough",
        f"{disc},media=cdrom",
    )
    run = vm.serial.run
    wait(vm, "[ -b /dev/sda -a -b /dev/sdb -a -b /dev/sr0 ]")
    found = places(vm)
    assert found.keys() == {"0:0:0", "0:5:3", "0:1:0"}
    sd_root, sd_data = found["0:0:0"], found["0:5:3"]
    assert found["0:1:0"] == "sr0"
    assert "ROOT" in run(f"cat /sys/block/{sd_root}/device/vpd_pg80")
    assert run(f"cat /sys/block/{sd_root}/queue/write_cache") == "write back\n"
    assert run(f"cat /sys/block/{sd_data}/queue/write_cache") == "write through\n"
    assert int(run(f"cat /sys/block/{sd_data}/queue/write_zeroes_max_bytes")) > 0

    run(f"mount /dev/{sd_root} /mnt")
    assert hashlib.sha256(GREETING).hexdigest() in run("sha256sum /mnt/greeting")
    before = root.stat().st_blocks
    run("dd if=/dev/zero bs=1M count=16 | tr '\\0' x > /mnt/fill; sync")
    assert root.stat().st_blocks >= before + 16 * MIB // 512
    run("rm /mnt/fill; sync; fstrim /mnt; umount /mnt")
    assert root.stat().st_blocks <= before + 2 * MIB // 512

    assert BLOB_DIGEST in run("sha256sum /dev/sr0")
    run(f"dd if=/dev/sr0 of=/dev/{sd_data} bs=2k seek=512 conv=fsync 2>/dev/null")
    read_back = f"dd if=/dev/{sd_data} bs=2k skip=512 count=513 2>/dev/null | sha256sum"
    assert BLOB_DIGEST in run(read_back)
    run(f"blkdiscard -o {SIZE // 2} /dev/{sd_data}")
    run(f"blkdiscard -o {MIB} -l {MIB} /dev/{sd_data}")
    vm.stop()
    listed = subprocess.run(
        ["qemu-img", "map", "--output=json", data], capture_output=True, check=True
    )
    held = [extent["start"] for extent in json.loads(listed.stdout) if extent["data"]]
    assert held
    assert all(0 <= start - 2 * MIB < 1 << 16 for start in held)
    subprocess.run(["qemu-img", "check", "-q", data], check=True)


def test_unit_comes_and_goes_while_the_guest_runs(
    boot: Boot, cloud: Kernel, root: Path, disc: Path
) -> None:
    vm = start(boot, cloud, f"{root},bus=scsi")
    wait(vm, "[ -b /dev/sda ]")
    scsi = vm.device("scsi").device
    with open_disks(MachineConfig(kernel=Path("k"), disks=(DiskConfig(str(disc)),))) as images:
        scsi.attach(3, 0, images[0], disc=True)
        wait(vm, "[ -b /dev/sr0 ]")
        assert BLOB_DIGEST in vm.serial.run("sha256sum /dev/sr0")
        other = disc.with_name("other.iso")
        other.write_bytes(BLOB[::-1])
        config = MachineConfig(kernel=Path("k"), disks=(DiskConfig(str(other)),))
        with open_disks(config) as others:
            digest = hashlib.sha256(BLOB[::-1]).hexdigest()
            scsi.eject(3, 0)
            vm.serial.run("! dd if=/dev/sr0 of=/dev/null bs=2k count=1 2>/dev/null")
            scsi.insert(3, 0, others[0])
            assert digest in vm.serial.run("sha256sum /dev/sr0")
            scsi.insert(3, 0, images[0])
            assert BLOB_DIGEST in vm.serial.run("sha256sum /dev/sr0")
        scsi.detach(3, 0)
        wait(vm, "[ ! -b /dev/sr0 ]")
    assert "sda" in places(vm).values()

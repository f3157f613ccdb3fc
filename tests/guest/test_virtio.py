"""Linux's virtio drivers on our devices, in the ways a boot does not use them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from stock import END_S, GREETING, Boot, start_shell

import ostler
from guests.fetch import Kernel
from guests.images import ext4
from ostler.config import DiskConfig

pytestmark = pytest.mark.guest

GREETING_HASH = hashlib.sha256(GREETING).hexdigest()
READ_GREETING = "mount -o ro /dev/vda /mnt && sha256sum /mnt/greeting && umount /mnt"
# Feature bits of the rings (virtio 1.2, section 6).
INDIRECT, EVENT_INDEX, PACKED = 28, 29, 34
# The disk is the first device; its driver is taken away while programs read, and given back.
UNBIND_WHILE_READING = (
    "cd /sys/bus/virtio/drivers/virtio_blk; for n in 1 2 3 4 5; do"
    " (dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null &); usleep 50000;"
    " echo virtio0 > unbind; echo virtio0 > bind; done; cd /"
)
REMOVE_AND_RESCAN = (
    "echo 1 > /sys/bus/pci/devices/0000:00:01.0/remove; echo 1 > /sys/bus/pci/rescan"
)


def interrupts(vm: ostler.VM, kind: str, user: str) -> int:
    """How often the guest's interrupts of this kind and name came."""
    rows = vm.serial.run("cat /proc/interrupts").splitlines()
    return sum(int(row.split()[1]) for row in rows if kind in row and user in row)


def negotiated(vm: ostler.VM, feature: int) -> list[str]:
    """Whether each virtio driver took the feature: "0" or "1"."""
    rows = vm.serial.run("cat /sys/bus/virtio/devices/*/features").split()
    return [row[feature] for row in rows]


def test_disk_without_msi_interrupts_by_its_pin(boot: Boot, cloud: Kernel, disk: Path) -> None:
    vm = start_shell(boot, cloud, "pci=nomsi", disks=[disk])
    assert GREETING_HASH in vm.serial.run(READ_GREETING)
    assert interrupts(vm, "IO-APIC", "virtio0") > 0


def test_disk_whose_driver_leaves_amid_requests_comes_back(shell: ostler.VM) -> None:
    shell.serial.run(UNBIND_WHILE_READING)
    assert GREETING_HASH in shell.serial.run(READ_GREETING)
    assert interrupts(shell, "PCI-MSI", "virtio0-req") > 0


def test_disk_removed_and_found_again_works_at_its_new_address(shell: ostler.VM) -> None:
    where = "cat /sys/bus/pci/devices/0000:00:01.0/resource"
    before = shell.serial.run(where)
    shell.serial.run(REMOVE_AND_RESCAN)
    assert shell.serial.run(where) != before
    assert GREETING_HASH in shell.serial.run(READ_GREETING)


def test_disk_read_only_has_its_serial_and_refuses_writes(
    boot: Boot, cloud: Kernel, disk: Path
) -> None:
    content = disk.read_bytes()
    only = DiskConfig(path=str(disk), readonly=True, serial="OST-0001")
    vm = start_shell(boot, cloud, disks=[only])
    assert vm.serial.run("cat /sys/block/vda/ro /sys/block/vda/serial").split() == ["1", "OST-0001"]
    vm.serial.run("dd if=/dev/zero of=/dev/vda bs=512 count=1", check=False)
    assert GREETING_HASH in vm.serial.run(READ_GREETING)
    assert disk.read_bytes() == content


def test_disk_trimmed_gives_room_back_to_the_host(
    boot: Boot, cloud: Kernel, tmp_path: Path
) -> None:
    disk = ext4(tmp_path / "roomy.img", {"greeting": GREETING}, 64 << 20)
    vm = start_shell(boot, cloud, disks=[disk])
    fill = "mount /dev/vda /mnt; dd if=/dev/urandom of=/mnt/fill bs=64k count=200; sync"
    vm.serial.run(fill)
    full = disk.stat().st_blocks
    vm.serial.run("rm /mnt/fill; sync; fstrim /mnt; umount /mnt")
    assert disk.stat().st_blocks < full - (8 << 20) // 512
    assert GREETING_HASH in vm.serial.run(READ_GREETING)


def test_disk_cache_switched_to_write_through_stores_what_is_written(shell: ostler.VM) -> None:
    cache = "/sys/block/vda/cache_type"
    shell.serial.run(f"echo 'write through' > {cache}")
    assert "write through" in shell.serial.run(f"cat {cache}")
    copy = "dd if=/dev/vda of=/tmp/head bs=4k count=16; dd if=/tmp/head of=/dev/vda bs=4k count=16"
    shell.serial.run(copy)
    assert GREETING_HASH in shell.serial.run(READ_GREETING)


@pytest.mark.parametrize("layout", ["on", "off"])
def test_devices_work_on_packed_and_on_split_rings(
    boot: Boot, cloud: Kernel, disk: Path, layout: str
) -> None:
    devices = [f"{kind},packed={layout}" for kind in ("virtio-rng", "virtio-console")]
    vm = start_shell(boot, cloud, disks=[f"{disk},packed={layout}"], devices=devices, net="none")
    assert set(negotiated(vm, PACKED)) == {"1" if layout == "on" else "0"}
    assert set(negotiated(vm, INDIRECT)) == set(negotiated(vm, EVENT_INDEX)) == {"1"}
    assert GREETING_HASH in vm.serial.run(READ_GREETING)
    read = "for n in 1 2 3 4; do (dd if=/dev/vda of=/dev/null bs=64k iflag=direct &); done; wait"
    vm.serial.run(f"{read}; dd if=/dev/vda of=/dev/null bs=4k iflag=direct")
    assert "1024" in vm.serial.run("dd if=/dev/hwrng bs=1024 count=1 2>/dev/null | wc -c")
    vm.serial.run("modprobe virtio_console; echo by the ring > /dev/hvc0")
    vm.hvc.wait_for("by the ring", timeout=END_S)


def test_entropy_within_a_rate_comes_no_faster(boot: Boot, cloud: Kernel) -> None:
    vm = start_shell(boot, cloud, devices=["virtio-rng,rate=2000"])
    started = time.monotonic()
    vm.serial.run("dd if=/dev/hwrng of=/dev/null bs=500 count=12", timeout=END_S)
    # 6,000 bytes, less a second's worth that may be saved up, and the driver's buffer.
    assert time.monotonic() - started > 1.5


def test_console_carries_bytes_both_ways(boot: Boot, cloud: Kernel) -> None:
    vm = start_shell(boot, cloud, devices=["virtio-console"])
    vm.serial.run("modprobe virtio_console; ls /dev/hvc0")
    vm.serial.run("echo from the guest > /dev/hvc0")
    vm.hvc.wait_for("from the guest", timeout=END_S)
    vm.serial.write("head -n 1 /dev/hvc0 | tr a-z A-Z\n")
    vm.hvc.write("to the guest\n")
    vm.serial.wait_for("TO THE GUEST", timeout=END_S)

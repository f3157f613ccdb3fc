"""Linux's virtio-mem driver: memory comes, is used, and goes back to the host."""

from __future__ import annotations

import time

import pytest
from stock import END_S, QUIET, Boot, start_shell
from test_balloon import resident_bytes

import ostler
from guests.fetch import Kernel
from guests.images import initrd

pytestmark = pytest.mark.guest

MIB = 1 << 20
ONLINE = f"{QUIET} memhp_default_state=online_movable"
# All that is plugged is in the zone of what can be moved.
USED = (
    "awk '/zone +Movable/ {m = 1} m && /pages free/ {f = $3}"
    " m && /managed/ {print ($2 - f) * 4096; exit}' /proc/zoneinfo"
)


def total_bytes(vm: ostler.VM) -> int:
    """What the guest says it has."""
    return int(vm.serial.run("grep MemTotal /proc/meminfo").split()[1]) << 10


def wait_for(vm: ostler.VM, plugged: int) -> None:
    """Wait until the driver has come so far."""
    end = time.monotonic() + END_S
    while vm.hotplug.plugged != plugged:
        assert time.monotonic() < end, f"{vm.hotplug.plugged} bytes are plugged, not {plugged}"
        time.sleep(0.05)


def test_memory_is_plugged_used_and_unplugged(boot: Boot, cloud: Kernel) -> None:
    image = initrd(cloud, drivers=("virtio_mem",))
    vm = start_shell(
        boot, cloud, ONLINE, initrd=image, memory="256M", devices="virtio-mem,size=1G", net="none"
    )
    before = total_bytes(vm)
    vm.hotplug.target = "512M"
    wait_for(vm, 512 * MIB)
    enough = (before >> 10) + 450 * 1024
    grown = f"until [ $(awk '/MemTotal/ {{print $2}}' /proc/meminfo) -gt {enough} ]"
    vm.serial.run(f"{grown}; do usleep 50000; done", timeout=END_S)
    # More than the guest has started with.
    vm.serial.run("mount -o remount,size=600M /tmp; dd if=/dev/zero of=/tmp/fill bs=1M count=350")
    assert vm.serial.run("wc -c </tmp/fill").strip() == str(350 * MIB)
    used = int(vm.serial.run(USED))
    assert used >= 350 * MIB - 256 * MIB
    vm.serial.run("rm /tmp/fill")
    full = resident_bytes()
    vm.hotplug.target = 0
    wait_for(vm, 0)
    assert full - resident_bytes() >= 0.9 * used
    assert total_bytes(vm) <= before
    # What has gone can come back.
    vm.hotplug.target = "128M"
    wait_for(vm, 128 * MIB)
    assert vm.serial.run("echo alive").strip() == "alive"
    with pytest.raises(ostler.errors.ConfigError, match="there is room for 1G"):
        vm.hotplug.target = "2G"

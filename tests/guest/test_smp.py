"""More vCPUs than cores: what they compute together is right, and 160 of them come up."""

from __future__ import annotations

import re

import pytest
from stock import SLOWER, SPOKEN, Boot, long, start_shell

from guests import native
from guests.fetch import Kernel
from guests.images import initrd

pytestmark = pytest.mark.guest

COMPLAINTS = re.compile(r"^.*(?:WARNING|BUG|rcu: INFO|soft lockup|Oops).*$", re.MULTILINE)
MANY = 160
MANY_BOOT_S = 400 * SLOWER
# Past what an xAPIC numbers.
BEYOND = 264
BEYOND_BOOT_S = 1800 * SLOWER


def test_four_cpus_verify_what_they_compute_together(boot: Boot, cloud: Kernel) -> None:
    image = initrd(cloud, programs={"/bin/smp": native.smp()})
    vm = start_shell(boot, cloud, initrd=image, cpus=4)
    assert vm.serial.run("nproc").strip() == "4"
    assert re.search(r"smp: verified \d+ rounds", vm.serial.run("smp 8 8 2>&1", timeout=120))
    shot_down = vm.serial.run("grep TLB: /proc/interrupts")
    assert sum(map(int, re.findall(r"\b\d+\b", shot_down))) > 0
    assert not COMPLAINTS.findall(vm.serial.run("dmesg", timeout=120))


def test_160_cpus_come_up_and_idle(boot: Boot, cloud: Kernel) -> None:
    vm = boot(
        kernel=cloud.image,
        initrd=initrd(cloud),
        append=f"console=ttyS0 {SPOKEN}",
        memory="1G",
        cpus=MANY,
    )
    vm.serial.wait_for("ostler: ready", timeout=MANY_BOOT_S)
    assert vm.serial.run("nproc", timeout=120).strip() == str(MANY)
    assert not COMPLAINTS.findall(vm.serial.run("dmesg", timeout=120))


@long
def test_264_cpus_come_up_by_x2apic_and_work(boot: Boot, cloud: Kernel) -> None:
    vm = boot(
        kernel=cloud.image,
        initrd=initrd(cloud),
        append="console=ttyS0 nowatchdog",
        memory="2G",
        cpus=BEYOND,
        net="none",
    )
    vm.serial.wait_for("ostler: ready", timeout=BEYOND_BOOT_S)
    assert vm.serial.run("nproc", timeout=400).strip() == str(BEYOND)
    assert "x2apic" in vm.serial.run("dmesg | grep -i 'apic routing'", timeout=400)
    last = BEYOND - 1
    where = f"taskset -c {last} sh -c 'cut -d\" \" -f39 /proc/self/stat'"
    assert vm.serial.run(where, timeout=400).strip() == str(last)

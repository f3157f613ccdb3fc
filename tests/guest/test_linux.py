"""Debian's two stock kernels to a shell: what commands say there, what the kernel complains of."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator

import pytest
from stock import (
    ACCELERATOR,
    BOOT_S,
    END_S,
    FLAVOURS,
    GREETING,
    READY,
    SLOWER,
    SPOKEN,
    Boot,
    start_shell,
)

import ostler
from guests.fetch import Kernel, kernel
from guests.images import ext4, initrd

pytestmark = pytest.mark.guest

COMPLAINTS = re.compile(r"WARNING:|BUG:|Oops|rcu: INFO|rcu:.*stall|soft lockup|Call Trace")


@pytest.fixture(scope="module", params=FLAVOURS)
def stock(request: pytest.FixtureRequest) -> Kernel:
    return kernel(request.param)


@pytest.fixture(scope="module")
def guest(stock: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ostler.VM]:
    """One boot of each kernel, for all tests of this file."""
    directory = tmp_path_factory.mktemp(f"linux-{stock.version}")
    disk = ext4(directory / "disk.img", {"greeting": GREETING})
    with ostler.VM(
        kernel=stock.image,
        initrd=initrd(stock),
        disks=[disk],
        devices=["virtio-rng"],
        append=f"console=ttyS0 {SPOKEN}",
        memory="512M",
        accelerator=ACCELERATOR,
    ) as vm:
        try:
            vm.serial.wait_for(READY, timeout=BOOT_S)
            yield vm
        finally:
            (directory / "serial.log").write_text(vm.serial.history)


def test_uname_names_the_kernel_that_was_started(guest: ostler.VM, stock: Kernel) -> None:
    assert guest.serial.run("uname -r").strip() == stock.version


def test_hypervisor_is_detected_as_kvm(guest: ostler.VM) -> None:
    assert "Hypervisor detected: KVM" in guest.serial.run("dmesg | grep -i hypervisor")


def test_new_generation_makes_the_guest_draw_new_random_numbers(
    guest: ostler.VM, stock: Kernel
) -> None:
    if "cloud" in stock.version:
        pytest.skip("Debian's 6.1 kernel for clouds has no vmgenid driver")
    reseeded = "dmesg | grep -c 'reseeded due to virtual machine fork'"
    before = int(guest.serial.run(reseeded, check=False))
    guest.renew_generation()
    deadline = time.monotonic() + END_S
    while int(guest.serial.run(reseeded, check=False)) == before:
        assert time.monotonic() < deadline, "the guest took no notice"


def test_clock_is_the_paravirtual_one(guest: ostler.VM) -> None:
    path = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert guest.serial.run(f"cat {path}").strip() == "kvm-clock"


def test_clock_of_the_guest_keeps_the_pace_of_the_host(guest: ostler.VM) -> None:
    def uptime() -> float:
        return float(guest.serial.run("cat /proc/uptime").split()[0])

    guest_before, host_before = uptime(), time.monotonic()
    guest.serial.run(f"sleep {3 * SLOWER}")
    guest_took, host_took = uptime() - guest_before, time.monotonic() - host_before
    assert guest_took == pytest.approx(host_took, abs=0.5 * SLOWER)


def test_file_on_the_disk_has_the_hash_it_has_on_the_host(guest: ostler.VM) -> None:
    guest.serial.run("mount /dev/vda /mnt")
    said = guest.serial.run("sha256sum /mnt/greeting").split()[0]
    guest.serial.run("umount /mnt")
    assert said == hashlib.sha256(GREETING).hexdigest()


def test_file_written_and_read_past_the_page_cache_is_the_same(guest: ostler.VM) -> None:
    guest.serial.run("mount /dev/vda /mnt")
    guest.serial.run("dd if=/dev/urandom of=/mnt/noise bs=64k count=64 conv=fsync 2>/dev/null")
    before = guest.serial.run("sha256sum /mnt/noise")
    guest.serial.run("umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount /dev/vda /mnt")
    assert guest.serial.run("sha256sum /mnt/noise") == before
    guest.serial.run("umount /mnt")


def test_entropy_comes_from_the_host(guest: ostler.VM) -> None:
    assert "virtio" in guest.serial.run("cat /sys/class/misc/hw_random/rng_current")
    said = guest.serial.run("dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c")
    assert said.strip() == "256"


def test_many_processes_compute_what_the_host_computes(guest: ostler.VM) -> None:
    said = guest.serial.run(
        "i=0; while [ $i -lt 50 ]; do echo $i | sha256sum; i=$((i+1)); done | sha256sum"
    )
    digests = [hashlib.sha256(f"{i}\n".encode()).hexdigest() for i in range(50)]
    lines = "".join(f"{digest}  -\n" for digest in digests)
    assert said.split()[0] == hashlib.sha256(lines.encode()).hexdigest()


def test_kernel_complains_of_nothing(guest: ostler.VM) -> None:
    complaints = COMPLAINTS.findall(guest.serial.run("dmesg", timeout=120))
    assert not complaints


def test_two_cpus_both_come_up_and_work(boot: Boot, cloud: Kernel) -> None:
    vm = start_shell(boot, cloud, cpus=2)
    assert vm.serial.run("nproc").strip() == "2"
    # The sha256sum below is placed on the idle CPU by a store to the line that it waits for.
    if ACCELERATOR == "soft":
        # KVM offers MWAIT to no guest unasked: it would keep the host's CPU.
        assert "using mwait in idle threads" in vm.serial.run("dmesg | grep idle")
    sums = vm.serial.run(
        "for i in 1 2; do (dd if=/dev/zero bs=64k count=32 2>/dev/null | sha256sum) & done; wait",
        timeout=120,
    )
    digest = hashlib.sha256(bytes(32 << 16)).hexdigest()
    assert sums.count(digest) == 2
    assert not COMPLAINTS.findall(vm.serial.run("dmesg", timeout=120))

"""Linux's balloon driver: memory goes to the host and comes back, shown by our own process."""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stock import END_S, SLOWER, Boot, start_shell

import ostler
from guests.fetch import Kernel

pytestmark = pytest.mark.guest

MIB = 1 << 20
MEMORY = 512 * MIB
FILL_BYTES = 256 * MIB
RETURN_S = 10 * SLOWER
FILL = "dd if=/dev/zero of=/tmp/fill bs=1M count=256; rm /tmp/fill"


def resident_bytes() -> int:
    """Host memory of this process, which the guest is part of."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) << 10


def wait_until(holds: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until `holds`; fails after `timeout_s`."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() < started + timeout_s, "it never came true"
        time.sleep(0.05)
    return time.monotonic() - started


@pytest.fixture
def vm(boot: Boot, cloud: Kernel) -> ostler.VM:
    gc.collect()
    vm = start_shell(boot, cloud, memory=MEMORY, devices=["virtio-balloon"])
    vm.serial.run("mount -o remount,size=400M /tmp")
    return vm


def test_memory_the_guest_frees_comes_back_by_itself(vm: ostler.VM) -> None:
    before = resident_bytes()
    vm.serial.run("dd if=/dev/zero of=/tmp/fill bs=1M count=256")
    full = resident_bytes()
    assert full - before > 0.9 * FILL_BYTES
    vm.serial.run("rm /tmp/fill")
    wait_until(lambda: full - resident_bytes() >= 0.9 * FILL_BYTES, RETURN_S)
    assert vm.balloon.returned_bytes >= 0.9 * FILL_BYTES


def test_target_is_met_and_the_guest_gets_its_memory_back(vm: ostler.VM) -> None:
    vm.serial.run(FILL)
    free = "grep MemFree /proc/meminfo"
    before = int(vm.serial.run(free).split()[1])
    vm.balloon.target = "256M"
    wait_until(lambda: vm.balloon.memory <= 256 * MIB, END_S)
    assert before - int(vm.serial.run(free).split()[1]) >= 250 << 10
    assert vm.balloon.returned_bytes >= 255 * MIB
    vm.balloon.target = MEMORY
    wait_until(lambda: vm.balloon.memory == MEMORY, END_S)
    vm.serial.run("dd if=/dev/zero of=/tmp/fill bs=1M count=256 && rm /tmp/fill")


def test_statistics_say_what_the_guest_sees(vm: ostler.VM) -> None:
    said = vm.balloon.statistics()
    total = int(vm.serial.run("grep MemTotal /proc/meminfo").split()[1])
    assert said["total_bytes"] == total << 10
    vm.serial.run("dd if=/dev/zero of=/tmp/fill bs=1M count=64")
    assert said["free_bytes"] - vm.balloon.statistics()["free_bytes"] > 60 * MIB


def test_free_pages_lent_when_asked_are_the_hosts(boot: Boot, cloud: Kernel) -> None:
    vm = start_shell(boot, cloud, memory=MEMORY, devices=["virtio-balloon,reporting=off"])
    vm.serial.run(f"mount -o remount,size=400M /tmp; {FILL}")
    full = resident_bytes()
    vm.balloon.collect_free_pages()
    wait_until(lambda: full - resident_bytes() >= 0.9 * FILL_BYTES, RETURN_S)
    vm.balloon.collect_free_pages()
    vm.serial.run(FILL)


def test_guest_out_of_memory_takes_it_from_the_balloon(vm: ostler.VM) -> None:
    vm.balloon.target = "128M"
    wait_until(lambda: vm.balloon.memory <= 128 * MIB, END_S)
    vm.serial.run("dd if=/dev/zero of=/tmp/fill bs=1M count=160")
    assert vm.balloon.memory > 128 * MIB

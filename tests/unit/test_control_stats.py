"""Where a guest's time went and what it needed: parsed, split into modes, counted, printed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_kernel import EXIT_1, SPIN, print_and_exit, write_kernel

from ostler import VM, Ending
from ostler.control.accelerator import why_not
from ostler.control.stats import ThreadTimes, VcpuStats, VmStats, format_stats, modes
from ostler.errors import ConfigError

STAT = (
    "4711 (a (b) c) R 1 4711 4711 0 -1 4194368 10 0 0 0 300 25 0 0 20 0 3 0 12345 1000 50 "
    "18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 210 0 0 0 0 0 0 0 0 0"
)


def test_thread_times_are_parsed_whatever_the_name_holds() -> None:
    times = ThreadTimes.parse(STAT, "3251000000 500000000 812\n")
    assert times == ThreadTimes(3.251, 0.5, 3.0, 0.25, 2.1)


def test_thread_times_of_this_thread_grow_and_of_one_that_ended_are_zero() -> None:
    before = ThreadTimes.of(threading.get_native_id())
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    assert ThreadTimes.of(threading.get_native_id()).running_s - before.running_s > 0.04
    assert ThreadTimes.of(1 << 22) == ThreadTimes()


def test_modes_under_kvm_are_the_hosts_accounting() -> None:
    times = ThreadTimes(running_s=3.25, user_s=3.0, kernel_s=0.25, guest_s=2.0)
    assert modes("kvm", times, decision_s=9) == (2.0, 0.25, 1.0)


@pytest.mark.parametrize(
    ("decision_s", "expected"), [(0.5, (2.5, 0.25, 0.5)), (0, (3.0, 0.25, 0)), (9, (0, 0.25, 3.0))]
)
def test_modes_of_the_software_cpu_add_up_to_the_time_it_ran(
    decision_s: float, expected: tuple[float, float, float]
) -> None:
    times = ThreadTimes(running_s=3.25, user_s=3.0, kernel_s=0.25)
    assert modes("soft", times, decision_s) == expected


def test_stats_of_two_boots_add_up_by_vcpu() -> None:
    first = VmStats("soft", (VcpuStats(0, 1, 2, 3, 4, {"hlt": 1}, {"rtc": 2}), VcpuStats(1)))
    second = VmStats("soft", (VcpuStats(0, 1, 1, 1, 1, {"io_in": 1}, {"rtc": 1}), VcpuStats(1, 5)))
    both = VmStats("") + first + second
    assert both.vcpus[0] == VcpuStats(0, 2, 3, 4, 5, {"hlt": 1, "io_in": 1}, {"rtc": 3})
    assert (both.accelerator, both.vcpus[1].guest_s, both.total.guest_s) == ("soft", 5, 7)


def test_stats_printed_have_a_row_for_each_vcpu_and_the_counts_by_size() -> None:
    one = VcpuStats(0, 1.5, 0.25, 0.125, 0, {"io_in": 2, "io_out": 1000}, {"rtc": 2})
    lines = format_stats(VmStats("soft", (one, VcpuStats(1, 0.5)))).splitlines()
    assert lines[0] == "accelerator soft; seconds of CPU time"
    assert lines[1].split() == ["guest", "kernel", "user", "waiting"]
    assert lines[2].split() == ["vcpu0", "1.50", "0.25", "0.12", "0.00"]
    assert lines[4].split() == ["all", "2.00", "0.25", "0.12", "0.00"]
    assert lines[5].split(None, 1) == ["exits", "io_out 1,000, io_in 2"]
    assert lines[6].split(None, 1) == ["devices", "rtc 2"]


@pytest.mark.parametrize("accelerator", ["soft", "kvm"])
def test_vm_counts_each_access_for_the_device_that_answered(
    tmp_path: Path, accelerator: str
) -> None:
    refusal = why_not(accelerator)
    if refusal is not None:
        pytest.skip(refusal)
    kernel = write_kernel(tmp_path / "kernel", print_and_exit(1000))
    vm = VM(kernel=kernel, devices=["debug-exit"], cpus=2, accelerator=accelerator)
    with pytest.raises(ConfigError, match="has not run yet"):
        vm.stats()
    with pytest.raises(ConfigError, match="has no accelerator yet"):
        print(vm.accelerator)
    with vm:
        assert vm.wait(timeout=60).ending is Ending.DEBUG_EXIT
    stats = vm.stats()
    assert [vcpu.id for vcpu in stats.vcpus] == [0, 1]
    assert stats.vcpus[0].devices == {"serial": 1000, "debug-exit": 1}
    assert stats.vcpus[0].exits["io_out"] == 1001
    assert stats.vcpus[1].devices == {}
    # The kernel's own count is of all exits, those that it finished itself included.
    assert (stats.vcpus[0].kernel.get("exits", 0) > 1000) == (accelerator == "kvm")
    assert (stats.accelerator, vm.accelerator.name) == (accelerator, accelerator)


def test_vm_that_runs_shows_its_time_in_guest_mode(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "kernel", SPIN)
    with VM(kernel=kernel, accelerator="soft") as vm:
        while vm.stats().total.guest_s < 0.05:
            time.sleep(0.005)
        before = vm.stats()
        vm.reset()
        while vm.stats().total.guest_s < before.total.guest_s + 0.05:
            time.sleep(0.005)
    after = vm.stats().total
    assert after.guest_s >= before.total.guest_s + 0.05, "the boot before the reset counts, too"
    assert after.user_s < after.guest_s / 10


def test_run_with_stats_prints_them_at_the_end(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "kernel", EXIT_1)
    program = "import sys; from ostler.cli import main; main()"
    ended = subprocess.run(
        [
            sys.executable, "-c", program, "run", "--kernel", str(kernel), "--accel", "soft",
            "--stats", "--device", "debug-exit", "--serial", "none", "--net", "none",
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert ended.returncode == 1
    said = ended.stderr.splitlines()
    assert said[0] == "accelerator soft; seconds of CPU time"
    assert said[-1].split(None, 1) == ["devices", "debug-exit 1"]

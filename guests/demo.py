"""The demo: a stock Debian kernel, busybox and a disk, started on this machine.

On a terminal it ends in a shell of the guest. Without one it runs a few commands in the guest,
prints what they say and powers off. What it starts stays under `build/demo`, by plain names.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import ostler
from guests.fetch import Kernel, busybox, kernel
from guests.images import ext4, initrd
from guests.packages import BUILD, FetchError
from ostler.errors import OstlerError

PLACE = BUILD.parent / "demo"
APPEND = "console=ttyS0 quiet"
GREETING = b"Greetings from the host.\n" * 4096
COMMANDS = (
    "uname -a",
    "head -n 5 /proc/cpuinfo",
    "dmesg | grep -i -e hypervisor -e clocksource",
    "mount -o ro /dev/vda /mnt && sha256sum /mnt/greeting",
)


def main() -> int:
    """Prepare the guest and start it; the exit code is the guest's."""
    try:
        stock = kernel("cloud")
        parts = lay_out(PLACE, stock)
        if sys.stdin.isatty() and sys.stdout.isatty():
            return shell(parts)
        return robot(parts)
    except (FetchError, OstlerError) as error:
        print(error, file=sys.stderr)
        return 2


@dataclass(frozen=True)
class Parts:
    """What the guest is started from."""

    kernel: Path
    initrd: Path
    disk: Path


def lay_out(place: Path, stock: Kernel) -> Parts:
    """Have everything in the directory `place`, for the demo and for whoever goes on from there.

    Beside the guest's own parts that is what an initramfs is made of, `busybox` and `modules`.
    """
    place.mkdir(parents=True, exist_ok=True)
    parts = Parts(place / "vmlinuz", place / "initrd.gz", place / "disk.img")
    sources = {
        parts.kernel: stock.image,
        parts.initrd: initrd(stock),
        place / "busybox": busybox(),
        place / "modules": stock.modules,
    }
    for name, source in sources.items():
        name.unlink(missing_ok=True)
        name.symlink_to(os.path.relpath(source, place))
    ext4(parts.disk, {"greeting": GREETING})
    return parts


def shell(parts: Parts) -> int:
    """Hand the terminal to the guest, as `ostler run` does."""
    command = [
        str(Path(sysconfig.get_path("scripts"), "ostler")), "run", "--kernel", str(parts.kernel),
        "--initrd", str(parts.initrd), "--disk", str(parts.disk),
        "--append", APPEND, "--memory", "512M", "--cpus", "1",
    ]  # fmt: skip
    print(f"$ {shlex.join(command)}\n(Ctrl-A x quits, Ctrl-A h helps)", flush=True)
    return subprocess.run(command).returncode


def robot(parts: Parts) -> int:
    """Run `COMMANDS` in the guest, check the disk's content, and power off."""
    start = time.monotonic()
    digest = hashlib.sha256(GREETING).hexdigest()
    with ostler.VM(
        kernel=parts.kernel,
        initrd=parts.initrd,
        disks=parts.disk,
        append=APPEND,
        memory="512M",
    ) as vm:
        vm.serial.wait_for("ostler: ready", timeout=120)
        print(f"the guest is up after {time.monotonic() - start:.1f} s", flush=True)
        for command in COMMANDS:
            said = vm.serial.run(command, timeout=60)
            print(f"guest# {command}\n{said}", flush=True)
        vm.serial.write("poweroff\n")
        outcome = vm.wait(timeout=60)
    print(outcome)
    if digest not in said:
        print(f"the disk should read {digest}", file=sys.stderr)
        return 1
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())

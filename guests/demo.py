"""The demo: a stock Debian kernel, busybox and a disk, started on this machine.

On a terminal it ends in a shell of the guest. Without one it runs a few commands in the guest,
prints what they say and powers off.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import ostler
from guests.fetch import Kernel, kernel
from guests.images import ext4, initrd
from guests.packages import BUILD, FetchError
from ostler.errors import OstlerError

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
        image, disk = initrd(stock), ext4(BUILD / "demo.img", {"greeting": GREETING})
        if sys.stdin.isatty() and sys.stdout.isatty():
            return shell(stock, image, disk)
        return robot(stock, image, disk)
    except (FetchError, OstlerError) as error:
        print(error, file=sys.stderr)
        return 2


def shell(stock: Kernel, image: Path, disk: Path) -> int:
    """Hand the terminal to the guest, as `ostler run` does."""
    command = [
        str(Path(sysconfig.get_path("scripts"), "ostler")), "run",
        "--kernel", str(stock.image), "--initrd", str(image), "--disk", str(disk),
        "--append", APPEND, "--memory", "512M", "--cpus", "1",
    ]  # fmt: skip
    print(f"$ {shlex.join(command)}\n(Ctrl-A x quits, Ctrl-A h helps)", flush=True)
    return subprocess.run(command).returncode


def robot(stock: Kernel, image: Path, disk: Path) -> int:
    """Run `COMMANDS` in the guest, check the disk's content, and power off."""
    start = time.monotonic()
    digest = hashlib.sha256(GREETING).hexdigest()
    with ostler.VM(
        kernel=stock.image, initrd=image, disks=[disk], append=APPEND, memory="512M"
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

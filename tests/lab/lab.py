"""The lab: real hardware virtualization on any host.

QEMU's TCG emulates AMD's SVM, nested paging included, so a Debian kernel booted in it loads the
genuine `kvm_amd`. The host's root is mounted there read-only, and this project's own environment
runs in it.

The emulator stands still at times: see `hold.py`, which makes that rare. What takes too long in the
lab says so there, and long before `SILENCE_S`; so a lab that falls silent for as long is the
emulator's doing, and is started again.
"""

from __future__ import annotations

import compileall
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guests.fetch import busybox, kernel
from ostler.image import Initramfs, ModuleTree

ROOT = Path(__file__).resolve().parents[2]
PYTHON = shlex.quote(sys.executable)
QEMU = "qemu-system-x86_64"
DRIVERS = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "kvm-amd")
MEMORY = "2G"
CPUS = 2
# Twenty times what the longest job takes on two idle cores: the emulator may get a part of one.
LIMIT_S = 2400
SILENCE_S = 400
ATTEMPTS = 3
LOOK_S = 0.2
# A CPU that stands still says nothing: that is how it is known.
KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 tsc=reliable nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
)
SHOWN_CHARACTERS = 8000


@dataclass(frozen=True)
class Done:
    """How a job ended, and all that was printed."""

    code: int
    output: str


def available() -> bool:
    """Whether this host has the emulator that the lab runs in."""
    return shutil.which(QEMU) is not None


@dataclass(frozen=True)
class Limits:
    """What a job may take."""

    seconds: float = LIMIT_S
    silence_s: float = SILENCE_S
    memory: str = MEMORY


USUAL = Limits()


def run(*commands: str, limits: Limits = USUAL, drivers: Sequence[str] = ()) -> Done:
    """Run shell commands in the repository, inside the lab, up to the first that fails.

    `drivers` are loaded besides the usual ones. Commands may write to `/run` and, unseen by the
    host, to `build`. Raises `AssertionError` where the lab itself does not come up.
    """
    # As an installation does: the lab cannot write what it compiles.
    compileall.compile_dir(ROOT / "src", quiet=1)
    with tempfile.TemporaryDirectory(prefix="ostler-lab-") as directory:
        image = Path(directory, "lab.gz")
        _image("\n".join(_job(commands)), drivers).write(image)
        for attempt in range(1, ATTEMPTS + 1):
            output, silent = _emulate(image, Path(directory, "output"), limits)
            if not silent:
                break
            print(f"lab: silent in attempt {attempt} after:\n{output[-500:]}", file=sys.stderr)
    ended = re.search(r"^lab: exit (\d+)", output, re.MULTILINE)
    assert ended is not None, f"the lab did not come to its end:\n{output[-SHOWN_CHARACTERS:]}"
    return Done(int(ended[1]), output)


def _emulate(image: Path, output: Path, limits: Limits) -> tuple[str, bool]:
    """What the lab printed until it ended or was stopped; and whether it had fallen silent."""
    with output.open("wb") as console:
        command = _command(image, limits.memory)
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
        ) as qemu:
            stopped = _wait(qemu, output, limits)
            if stopped:
                qemu.kill()
                console.write(f"\n{QEMU} was stopped: {stopped}\n".encode())
    return output.read_text(errors="replace"), stopped == "silence"


def _wait(qemu: subprocess.Popen[bytes], output: Path, limits: Limits) -> str:
    """Wait for the end: why not any longer, or nothing when it came."""
    begun = heard = time.monotonic()
    size = 0
    while qemu.poll() is None:
        time.sleep(LOOK_S)
        now = time.monotonic()
        if output.stat().st_size != size:
            size, heard = output.stat().st_size, now
        if now - heard > limits.silence_s:
            return "silence"
        if now - begun > limits.seconds:
            return f"{limits.seconds} s are over"
    return ""


def _job(commands: tuple[str, ...]) -> list[str]:
    return [
        "set -e",
        f"cd {shlex.quote(str(ROOT))}",
        "export HOME=/run TMPDIR=/run/tmp XDG_CACHE_HOME=/run/cache PYTHONDONTWRITEBYTECODE=1",
        "export OSTLER_LAB=1 PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "mkdir /run/new /run/work",
        "mount -t overlay -o lowerdir=build,upperdir=/run/new,workdir=/run/work build build",
        f"{PYTHON} tests/lab/hold.py",
        *commands,
        "",
    ]


def _image(job: str, drivers: Sequence[str]) -> Initramfs:
    stock = kernel("full")
    image = Initramfs()
    image.archive.add_file("/bin/busybox", busybox(), mode=0o755)
    image.archive.add_bytes("/lab/job", job.encode())
    image.add_init(Path(__file__).with_name("init"))
    image.add_modules(ModuleTree(stock.modules), (*DRIVERS, *drivers))
    return image


def _command(image: Path, memory: str) -> list[str]:
    share = "local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap"
    return [
        QEMU, "-accel", "tcg,thread=multi", "-cpu", "max,+svm,+npt", "-smp", str(CPUS),
        "-m", memory, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-serial", "stdio", "-kernel", str(kernel("full").image), "-initrd", str(image),
        "-append", KERNEL_OPTIONS, "-virtfs", share,
    ]  # fmt: skip

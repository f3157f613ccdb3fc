"""`python -m benches.disks`: guests' disks by virtio-blk, on ostler and on QEMU's TCG, in pairs.

4 KiB at random places with 16 requests under way, and 1 MiB after 1 MiB with 4, on a raw and on a
qcow2 image that are full; the guest goes around its page cache. Microseconds per request.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from benches import engines, report
from guests import native
from guests.fetch import Kernel, kernel
from guests.images import initrd
from guests.packages import BUILD, FetchError

RESULT = BUILD.parent / "bench-disks.json"
APPEND = "console=ttyS0 quiet run=/bin/diskbench"
MIB = 1 << 20


def images(folder: Path, size_mib: int) -> tuple[Path, Path]:
    """A raw image full of noise, and the same in qcow2."""
    raw, qcow2 = folder / "disk.raw", folder / "disk.qcow2"
    with raw.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, qcow2], check=True)
    os.sync()
    return raw, qcow2


def ostler(stock: Kernel, image: Path, raw: Path, qcow2: Path) -> engines.Sample:
    """One run on our software CPU."""
    program = Path(sysconfig.get_path("scripts"), "ostler")
    return engines.guest(
        [
            str(program), "run", "--kernel", str(stock.image), "--initrd", str(image), "--append",
            APPEND, "--memory", engines.MEMORY, "--accel", "soft", "--net", "none",
            "--disk", f"{raw},format=raw", "--disk", f"{qcow2},format=qcow2",
        ]
    )  # fmt: skip


def qemu(stock: Kernel, image: Path, raw: Path, qcow2: Path) -> engines.Sample:
    """One run on QEMU's TCG."""
    disks = [
        word
        for name, path in (("raw", raw), ("qcow2", qcow2))
        for word in (
            "-drive", f"file={path},format={name},if=none,id={name}",
            "-device", f"virtio-blk-pci,drive={name}",
        )
    ]  # fmt: skip
    return engines.guest(
        [
            "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", engines.MEMORY,
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", str(stock.image), "-initrd", str(image), "-append", APPEND, *disks,
        ]
    )  # fmt: skip


def measure(pairs: int, size_mib: int) -> None:
    """Measure, print, write `build/bench-disks.json`."""
    stock = kernel("cloud")
    image = initrd(stock, programs={"/bin/diskbench": native.disk()})
    samples: dict[str, list[engines.Sample]] = {"qemu": [], "ostler": []}
    with tempfile.TemporaryDirectory(prefix="bench-disks-") as folder:
        disks = images(Path(folder), size_mib)
        for pair in range(pairs):
            print(f"pair {pair + 1} of {pairs}", file=sys.stderr)
            samples["qemu"].append(qemu(stock, image, *disks))
            samples["ostler"].append(ostler(stock, image, *disks))
    found = report.rows(samples)
    report.show(found, f"Linux {stock.version}, virtio-blk, medians of {pairs}")
    report.write(found, RESULT, stock.version, pairs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benches.disks", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--size-mib", type=int, default=256)
    options = parser.parse_args()
    try:
        measure(options.pairs, options.size_mib)
    except (engines.BenchError, FetchError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

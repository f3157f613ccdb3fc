"""The NBD server beside qemu-nbd: `python -m benches.nbd`, in alternating pairs.

Clients are nbdcopy and qemu-img; the image is raw, 1 GiB with 600 MiB of data, in the page cache.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

MIB = 1 << 20
DATA_MIB, SIZE_MIB = 600, 1024
RESULT = Path(__file__).resolve().parents[1] / "build/bench-nbd.json"
OSTLER = (sys.executable, "-c", "from ostler.cli import main; main()", "image", "serve")
SERVERS = ("qemu", "ostler")
Command = Callable[[str, Path], list[str]]


def _bench(*options: str) -> Command:
    return lambda url, _: ["qemu-img", "bench", "-f", "raw", *options, url]


WORKLOADS: dict[str, Command] = {
    "nbdcopy, read": lambda url, _: ["nbdcopy", url, "null:"],
    "nbdcopy, read, 1 connection": lambda url, _: ["nbdcopy", "--connections=1", url, "null:"],
    "nbdcopy, write": lambda url, image: ["nbdcopy", str(image), url],
    "qemu-img convert": lambda url, image: [
        "qemu-img", "convert", "-f", "raw", "-O", "raw", url, f"{image}.out",
    ],
    "4 KiB reads, 1 at a time": _bench("-c", "20000", "-d", "1", "-s", "4096"),
    "4 KiB reads, 64 at a time": _bench("-c", "60000", "-d", "64", "-s", "4096"),
    "4 KiB writes, 64 at a time": _bench("-w", "-c", "30000", "-d", "64", "-s", "4096"),
    "64 KiB reads, 16 at a time": _bench("-c", "10000", "-d", "16", "-s", "65536"),
}  # fmt: skip


@contextmanager
def serving(server: str, image: Path, where: Path) -> Iterator[str]:
    """The URL of `image` on one of the servers."""
    command = {
        "qemu": ("qemu-nbd", "-f", "raw", "-t", "-e", "16", "-k", str(where), str(image)),
        "ostler": (*OSTLER, str(image), "-f", "raw", "-k", str(where)),
    }[server]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not where.exists() and process.poll() is None:
            time.sleep(0.01)
        try:
            yield f"nbd+unix:///?socket={where}"
        finally:
            process.kill()
    where.unlink(missing_ok=True)


def make_image(path: Path, seed: int) -> None:
    """Noise, then a hole."""
    dice = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(DATA_MIB):
            file.write(dice.randbytes(MIB))
        file.truncate(SIZE_MIB * MIB)


def measure(pairs: int) -> dict[str, dict[str, float]]:
    """Median seconds of each workload with each server."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        image, other, where = (Path(directory, name) for name in ("disk", "other", "s"))
        make_image(image, 1)
        make_image(other, 2)
        for name, workload in WORKLOADS.items():
            seconds: dict[str, list[float]] = {server: [] for server in SERVERS}
            for _ in range(pairs):
                for server in SERVERS:
                    with serving(server, image, where) as url:
                        began = time.monotonic()
                        command = workload(url, other)
                        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                        seconds[server].append(time.monotonic() - began)
            results[name] = {server: median(times) for server, times in seconds.items()}
    return results


def main() -> int:
    """Measure, print, write `build/bench-nbd.json`."""
    parser = argparse.ArgumentParser(prog="benches.nbd", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    results = measure(parser.parse_args().pairs)
    table = Table("NBD server", "qemu-nbd s", "ostler s", "ostler/qemu")
    for name, times in results.items():
        ratio = times["ostler"] / times["qemu"]
        table.add_row(name, f"{times['qemu']:.3f}", f"{times['ostler']:.3f}", f"{ratio:.2f}")
    Console().print(table)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

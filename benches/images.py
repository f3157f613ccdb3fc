"""The image verbs beside qemu-img: `python -m benches.images`, in alternating pairs.

Both programs get the same command line. A row is the time of the whole command, or, where it says
so, the time that `bench` itself reports, that of the call in an interpreter that runs already, or
the size of what was written. Beside each is what the ratio is to be at most.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

import ostler
from ostler.block.formats.qcow2 import Qcow2Image

MIB = 1 << 20
RESULT = Path(__file__).resolve().parents[1] / "build/bench-images.json"
OSTLER = (sys.executable, "-c", "from ostler.cli import main; main()", "image")
PROGRAMS = {"qemu": ("qemu-img",), "ostler": OSTLER}
REPORTED = re.compile(r"Run completed in ([0-9.]+) seconds")

Files = dict[str, Path]
Inside = Callable[[Path], object]


@dataclass(frozen=True)
class Workload:
    """A command for both programs, and what is there before it."""

    arguments: str
    """`{raw}` and `{qcow2}` are images that exist, `{new}` is none, `{copy}` a fresh copy
    of the image `before`."""
    before: str = ""
    reported: bool = False
    """`bench` says how long it took; its start is not counted."""
    inside: Inside | None = None
    """The same from Python on the path of `{copy}` or `{new}`: its start is not counted."""
    size: str = ""
    """The row that has the size of `{new}`, in MiB, if there is one."""
    target: float = 1.0
    """What ostler's time may be of qemu-img's."""


def _snapshot(path: Path) -> None:
    with ostler.open_image(path) as image:
        assert isinstance(image, Qcow2Image)
        image.snapshot("one")


def _scattered(write: bool, image: str) -> str:
    """4 KiB at places that are not in order: each a step of a prime number of them further."""
    return f"bench {'-w ' * write}-c 40000 -d 16 -s 4096 -S 4198400 -f {image}"


WORKLOADS = {
    "convert raw to qcow2": Workload("convert -f raw -O qcow2 {raw} {new}", target=1 / 1.3),
    "convert qcow2 to raw": Workload("convert -f qcow2 -O raw {qcow2} {new}", target=1 / 1.3),
    "convert -c, zlib": Workload(
        "convert -c -f raw -O qcow2 {raw} {new}", size="MiB of zlib", target=0.5
    ),
    "convert -c, zstd": Workload(
        "convert -c -o compression_type=zstd -f raw -O qcow2 {raw} {new}",
        size="MiB of zstd",
        target=0.5,
    ),
    "convert from compressed": Workload("convert -f qcow2 -O raw {packed} {new}"),
    "compare": Workload("compare {raw} {qcow2}"),
    "create": Workload("create -q -f qcow2 {new} 100G"),
    "create, the call alone": Workload(
        "create -q -f qcow2 {new} 100G", inside=lambda path: ostler.create_image(path, 100 << 30)
    ),
    "info": Workload("info {wide}"),
    "snapshot": Workload("snapshot -c one {copy}", before="qcow2", target=0.1),
    "snapshot, the call alone": Workload(
        "snapshot -c one {copy}", before="qcow2", inside=_snapshot, target=0.1
    ),
    "check, 100 GiB, 100,000 clusters": Workload("check -q {wide}"),
    "map, 100 GiB, 100,000 extents": Workload("map --output json {wide}"),
    "measure": Workload("measure -O qcow2 {wide}"),
    "resize": Workload("resize -q {copy} +10G", before="overlay"),
    "rebase": Workload("rebase -f qcow2 -b {other} -F qcow2 {copy}", before="filled"),
    "commit": Workload("commit -q -d {copy}", before="over"),
    "dd": Workload("dd -f raw -O qcow2 bs=1M if={raw} of={new}"),
    "4 KiB reads, raw": Workload(_scattered(False, "raw {raw}"), reported=True),
    "4 KiB reads, qcow2": Workload(_scattered(False, "qcow2 {qcow2}"), reported=True),
    "4 KiB reads through an overlay": Workload(
        _scattered(False, "qcow2 {copy}"), before="overlay", reported=True
    ),
    "4 KiB reads, raw, no page cache": Workload(
        "bench -t none -c 8000 -d 16 -s 4096 -S 4198400 -f raw {raw}", reported=True
    ),
    "4 KiB writes, raw": Workload(_scattered(True, "raw {copy}"), before="raw", reported=True),
    "4 KiB writes, qcow2": Workload(
        _scattered(True, "qcow2 {copy}"), before="qcow2", reported=True
    ),
    "4 KiB allocating writes": Workload(
        "bench -w -c 16000 -d 16 -s 4096 -S 65536 -f qcow2 {copy}",
        before="empty",
        reported=True,
        target=1 / 3,
    ),
    "4 KiB writes over a backing file": Workload(
        "bench -w -c 8000 -d 16 -s 4096 -S 65536 -f qcow2 {copy}",
        before="overlay",
        reported=True,
        target=1 / 3,
    ),
}
SIZE_TARGET = 1.03
WITHIN = {"reads": ("4 KiB reads, qcow2", "4 KiB reads, raw"),
          "writes": ("4 KiB writes, qcow2", "4 KiB writes, raw")}  # fmt: skip
"""Rows of ostler's own: its time for qcow2 beside that for raw."""
WITHIN_TARGET = 1 / 0.9


@dataclass
class Bench:
    """The images of a run, in a directory of their own."""

    directory: Path
    data_mib: int
    size_mib: int
    images: Files = field(default_factory=dict)

    @cached_property
    def environment(self) -> dict[str, str]:
        """As a user has it: what is installed is compiled, whatever this shell says of bytecode."""
        mine = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return mine | {"PYTHONPYCACHEPREFIX": str(self.directory / "bytecode")}

    def prepare(self) -> None:
        """Make what the workloads start from: all by qemu-img, for both programs alike."""
        for name in (
            "raw",
            "qcow2",
            "packed",
            "wide",
            "empty",
            "overlay",
            "other",
            "filled",
            "base",
        ):
            self.images[name] = self.directory / name
        at = self.images
        _fill(at["raw"], self.data_mib, self.size_mib)
        _qemu("convert", "-O", "qcow2", at["raw"], at["qcow2"])
        _qemu("convert", "-c", "-W", "-O", "qcow2", at["raw"], at["packed"])
        _qemu("create", "-q", "-f", "qcow2", at["wide"], "100G")
        _qemu(*_words("bench -w -c 100000 -d 64 -s 4096 -S 1M -f qcow2 -t unsafe"), at["wide"])
        _qemu("create", "-q", "-f", "qcow2", at["empty"], f"{self.size_mib}M")
        for name, behind in (("overlay", "qcow2"), ("filled", "qcow2"), ("other", "qcow2")):
            _qemu("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", at[behind], at[name])
        for name in ("filled", "other"):
            _qemu(*_words("bench -w -c 2000 -d 64 -s 65536 -S 128K -f qcow2 -t unsafe"), at[name])

    @property
    def new_mib(self) -> float:
        """How large the image is that the last command made."""
        return (self.directory / "new").stat().st_size / MIB

    def run(self, workload: Workload, program: str) -> float:
        """Seconds that the workload took."""
        new = self.directory / "new"
        copy = self.directory / "copy"
        for path in (new, copy, self.directory / "copy-base"):
            path.unlink(missing_ok=True)
        if workload.before == "over":
            shutil.copy(self.images["qcow2"], self.directory / "copy-base")
            shutil.copy(self.images["filled"], copy)
            _qemu("rebase", "-u", "-F", "qcow2", "-b", self.directory / "copy-base", copy)
        elif workload.before:
            _qemu("convert", "-U", "-O", "raw", "-f", "raw", self.images[workload.before], copy)
        os.sync()
        if program == "ostler" and workload.inside is not None:
            began = time.perf_counter()
            workload.inside(copy if workload.before else new)
            return time.perf_counter() - began
        words = workload.arguments.format(new=new, copy=copy, **self.images).split()
        command = [*PROGRAMS[program], *words]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr or done.stdout}")
        if workload.reported and (found := REPORTED.search(done.stdout)):
            return float(found[1])
        return seconds


def _fill(path: Path, data_mib: int, size_mib: int) -> None:
    """Files of this host one after the other, then a hole: what disks of systems look like."""
    left = data_mib * MIB
    files = sorted(
        each for each in Path("/usr").rglob("*") if each.is_file() and not each.is_symlink()
    )
    with path.open("wb") as file:
        for each in files:
            content = each.read_bytes()[:left]
            file.write(content)
            left -= len(content)
            if not left:
                break
        file.truncate(size_mib * MIB)


def _words(text: str) -> list[str]:
    return text.split()


def _qemu(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


Result = dict[str, float]


def measure(pairs: int, chosen: str, data_mib: int, size_mib: int) -> dict[str, Result]:
    """Median seconds of each workload with each program, and the median of their ratios."""
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="bench-images-") as directory:
        bench = Bench(Path(directory), data_mib, size_mib)
        bench.prepare()
        for name, workload in WORKLOADS.items():
            if not re.search(chosen, name):
                continue
            taken: dict[str, list[float]] = {program: [] for program in PROGRAMS}
            sizes: dict[str, list[float]] = {program: [] for program in PROGRAMS}
            for _ in range(pairs):
                for program in PROGRAMS:
                    taken[program].append(bench.run(workload, program))
                    if workload.size:
                        sizes[program].append(bench.new_mib)
            results[name] = _result(taken, workload.target)
            if workload.size:
                results[workload.size] = _result(sizes, SIZE_TARGET)
            print(name, results[name], file=sys.stderr)
    for name, (one, other) in WITHIN.items():
        if one in results and other in results:
            results[f"4 KiB {name}, qcow2 beside raw"] = _within(results[one], results[other])
    return results


def _result(taken: dict[str, list[float]], target: float) -> Result:
    pairwise = [one / other for one, other in zip(taken["ostler"], taken["qemu"], strict=True)]
    medians = {program: median(times) for program, times in taken.items()}
    return medians | {"ratio": median(pairwise), "target": target}


def _within(one: Result, other: Result) -> Result:
    ratio = one["ostler"] / other["ostler"]
    return {"ostler": one["ostler"], "ratio": ratio, "target": WITHIN_TARGET}


def main() -> int:
    """Measure, print, write `build/bench-images.json`."""
    parser = argparse.ArgumentParser(prog="benches.images", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose name matches")
    parser.add_argument("--data-mib", type=int, default=606)
    parser.add_argument("--size-mib", type=int, default=1024)
    chosen = parser.parse_args()
    results = measure(chosen.pairs, chosen.only, chosen.data_mib, chosen.size_mib)
    table = Table("image verbs", "qemu-img s", "ostler s", "ratio", "at most")
    for name, times in results.items():
        cells = (f"{times[key]:.3f}" if key in times else "-" for key in ("qemu", "ostler"))
        table.add_row(name, *cells, f"{times['ratio']:.2f}", f"{times['target']:.2f}")
    console = Console(width=100)
    console.print(table)
    missed = [name for name, times in results.items() if times["ratio"] > times["target"]]
    console.print(f"targets missed: {'; '.join(missed) or 'none'}")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

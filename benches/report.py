"""Medians of the samples, as a table for people and as JSON for what comes after."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean, median

from rich.console import Console
from rich.table import Table

from benches.engines import Sample

COLUMNS = {
    "native": "native",
    "qemu": "qemu tcg",
    "ostler": "ostler",
    "e1000": "ostler, e1000",
    "ratio": "ostler/qemu",
    "target": "at most",
}
TITLES = {
    "boot": "time to userland",
    "integer": "integer loop",
    "syscall": "system call",
    "switch": "context switch",
    "fault": "page fault",
    "forkexec": "fork + exec + wait",
    "sha256": "sha256, scalar",
    "gzip": "gzip, busybox",
    "float": "floating point",
    "random": "random loads",
    "load": "sequential loads",
    "sort": "qsort",
    "vector": "SSE2 integers",
    "call": "call and return",
    "indirect": "indirect jumps, random order",
    "repeated": "indirect jumps, repeating order",
    "codestore": "stores beside code",
    "memcpy": "memcpy by rep movsb",
    "mips": "integer loop",
    "memory": "memory beyond the guest",
    "mean": "geometric mean of the ten rows that compute",
    "disk_read4k_raw": "4 KiB random reads, raw",
    "disk_read4k_qcow2": "4 KiB random reads, qcow2",
    "disk_write4k_raw": "4 KiB random writes, raw",
    "disk_write4k_qcow2": "4 KiB random writes, qcow2",
    "disk_read1m_raw": "1 MiB sequential reads, raw",
    "disk_read1m_qcow2": "1 MiB sequential reads, qcow2",
    "disk_write1m_raw": "1 MiB sequential writes, raw",
    "disk_write1m_qcow2": "1 MiB sequential writes, qcow2",
    "net_put": "TCP, guest to peer",
    "net_get": "TCP, peer to guest",
    "net_datagram": "UDP of 1 KiB, there and back",
    "net_small": "UDP of 64 bytes, there and back",
    "net_connect": "TCP connection",
    "net_flood": "UDP at full speed, guest to peer",
    "net_flood_lost": "of it lost",
    "net_shower": "UDP at full speed, peer to guest",
    "net_shower_lost": "of it lost",
}


# What ostler's time may be of TCG's at most, where that is not 1; for rows of a guest's own speed.
TARGETS = {
    "boot": 1.0, "integer": 1.0, "syscall": 0.8, "switch": 1.0, "fault": 0.6, "forkexec": 1.0,
    "sha256": 1.0, "gzip": 1.0, "float": 0.1, "random": 1.0, "load": 1.0, "sort": 1.0,
    # In random order native code takes 0.32 of TCG's time: most of it is the host's mispredictions.
    "vector": 1.0, "call": 0.35, "indirect": 0.35, "repeated": 0.35, "codestore": 0.1,
    "memcpy": 0.15,
    **{f"disk_{load}{bytes}_{format}": 1.0 for load in ("read", "write") for bytes in ("4k", "1m")
       for format in ("raw", "qcow2")},
}  # fmt: skip
# The rows that compute, and what the geometric mean of their ratios may be.
COMPUTE = (
    "integer", "sha256", "float", "random", "load", "sort", "vector", "call", "indirect", "memcpy",
)  # fmt: skip
MEAN_TARGET = 0.5


def rows(samples: Mapping[str, Sequence[Sample]]) -> list[dict[str, object]]:
    """One row a measurement: each engine's median, and that of ostler's time to qemu's by pair."""
    first = samples["qemu"][0] if samples.get("qemu") else samples["ostler"][0]
    found: list[dict[str, object]] = []
    for name, unit in first.units.items():
        if name == "done":
            continue
        medians = {
            engine: median(sample.values[name] for sample in runs)
            for engine, runs in samples.items()
            if runs and name in runs[0].values
        }
        row: dict[str, object] = {"name": name, "unit": unit, **medians}
        if "ostler" in medians and "qemu" in medians:
            pairs = zip(samples["ostler"], samples["qemu"], strict=False)
            both = [(one.values[name], other.values[name]) for one, other in pairs]
            if all(other for _, other in both) and unit != "%":
                row["ratio"] = median(one / other for one, other in both)
            if name in TARGETS:
                row["target"] = TARGETS[name]
        row["samples"] = {
            engine: [sample.values[name] for sample in runs]
            for engine, runs in samples.items()
            if engine in medians
        }
        found.append(row)
    if "integer" in first.units:
        found.append(_instructions_per_second(found))
    if mean := _mean_of_compute(found):
        found.append(mean)
    return found


def _mean_of_compute(found: Sequence[Mapping[str, object]]) -> dict[str, object] | None:
    """The geometric mean of the ratios of the rows that compute; none where one is missing."""
    ratios = {row["name"]: row["ratio"] for row in found if "ratio" in row}
    wanted = [ratio for name in COMPUTE if isinstance(ratio := ratios.get(name), float)]
    if len(wanted) < len(COMPUTE):
        return None
    return {"name": "mean", "unit": "", "ratio": geometric_mean(wanted), "target": MEAN_TARGET}


def missed(found: Sequence[Mapping[str, object]]) -> list[str]:
    """The titles of the rows whose ratio is above its target."""
    return [
        TITLES.get(str(row["name"]), str(row["name"]))
        for row in found
        if isinstance(ratio := row.get("ratio"), float)
        and isinstance(target := row.get("target"), float)
        and ratio > target
    ]


def _instructions_per_second(found: Sequence[dict[str, object]]) -> dict[str, object]:
    """Million guest instructions a second, from the loop of known length."""
    integer = next(row for row in found if row["name"] == "integer")
    row: dict[str, object] = {"name": "mips", "unit": "million instructions/s"}
    for engine in ("ostler", "qemu", "native"):
        if isinstance(value := integer.get(engine), float):
            row[engine] = 1e3 / value
    return row


def show(found: Sequence[dict[str, object]], heading: str) -> None:
    """Print the table; a ratio under 1 means that ostler is faster."""
    table = Table(title=heading)
    present = [key for key in COLUMNS if any(key in row for row in found)]
    for column in ("", "unit", *(COLUMNS[key] for key in present)):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for row in found:
        cells = [_number(row.get(key)) for key in present]
        table.add_row(TITLES.get(str(row["name"]), str(row["name"])), str(row["unit"]), *cells)
    console = Console(width=120)
    console.print(table)
    if any("target" in row for row in found):
        console.print(f"targets missed: {', '.join(missed(found)) or 'none'}")


def write(found: Sequence[dict[str, object]], path: Path, kernel: str, pairs: int) -> None:
    """Write the rows, and on what they were measured, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"host": _host(), "kernel": kernel, "pairs": pairs, "rows": list(found)}
    path.write_text(json.dumps(record, indent=2) + "\n")


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else _whole(value)


def _whole(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, float) else "-"


def _host() -> dict[str, object]:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {"cpu": models[0], "cores": os.cpu_count(), "kernel": platform.release()}

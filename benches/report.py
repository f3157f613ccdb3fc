"""Medians of the samples, as a table for people and as JSON for what comes after."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benches.engines import Sample

COLUMNS = {
    "native": "native",
    "qemu": "qemu tcg",
    "ostler": "ostler",
    "e1000": "ostler, e1000",
    "ratio": "ostler/qemu",
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
    "indirect": "indirect jumps",
    "codestore": "stores beside code",
    "memcpy": "memcpy by rep movsb",
    "mips": "integer loop",
    "net_put": "TCP, guest to peer",
    "net_get": "TCP, peer to guest",
    "net_datagram": "UDP of 1 KiB, there and back",
    "net_connect": "TCP connection",
}


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
            row["ratio"] = median(one.values[name] / other.values[name] for one, other in pairs)
        row["samples"] = {
            engine: [sample.values[name] for sample in runs]
            for engine, runs in samples.items()
            if engine in medians
        }
        found.append(row)
    if "integer" in first.units:
        found.append(_instructions_per_second(found))
    return found


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
    Console(width=110).print(table)


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

"""Memory that translated code lives in is never writable where it is executable."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from small_kernel import SPIN, write_kernel

from ostler import VM

TRANSLATIONS = "ostler-translations"


def permissions() -> list[tuple[str, bool]]:
    """Of each mapping of this process, and whether it is for translated code."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [(line.split()[1], TRANSLATIONS in line) for line in lines]


def test_code_is_written_through_one_mapping_and_runs_in_another(tmp_path: Path) -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    if not {"avx2", "bmi2", "movbe"} <= set(flags):
        pytest.skip("this host translates nothing")
    kernel = write_kernel(tmp_path / "kernel", SPIN)
    with VM(kernel, accelerator="soft", net="none", profile=True) as vm:
        deadline = time.monotonic() + 60
        while vm.profile().total.seconds["translated"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = permissions()
    assert sorted(rights for rights, is_code in found if is_code) == ["r-xs", "rw-s"]
    assert not [rights for rights, _ in found if "w" in rights and "x" in rights]

"""The extension module against its stub, and the README's example."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_stub_agrees_with_the_extension_module() -> None:
    checked = run_python("-W", "ignore", "-m", "mypy.stubtest", "ostler._native")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_example_prints_each_exit() -> None:
    ran = run_python("docs/examples/machine_code.py")
    assert ran.stderr == ""
    assert ran.stdout.splitlines()[0] == "IoOut(port=0x3e9, data=b'5')"
    assert ran.stdout.splitlines()[1].startswith("Hlt() Regs(rax=0x35, rbx=0x3,")

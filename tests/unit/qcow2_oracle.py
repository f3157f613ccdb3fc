"""QEMU's programs as the judge of images."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-utils")


def qemu(*arguments: str | Path, program: str = "qemu-img", code: int = 0) -> str:
    """What QEMU's program prints; it has to end with `code`."""
    command = [program, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def check_and_compare(path: Path, truth: bytes | bytearray) -> None:
    """QEMU finds the image sound, and reads `truth` from it."""
    qemu("check", path)
    raw = path.with_suffix(".truth")
    raw.write_bytes(truth)
    qemu("compare", "-F", "raw", path, raw)

"""Raw image locks against QEMU's own: neither opens what the other writes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ostler.block import open_image
from ostler.errors import DiskError

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-utils")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def qemu_holding(path: Path, *options: str) -> Iterator[None]:
    """QEMU's block layer with the image open, as long as the context lasts."""
    command = ["qemu-io", *options, "-f", "raw", str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write(b"length\n")
        qemu.stdin.flush()
        assert b"1 MiB" in qemu.stdout.readline()
        yield
        qemu.stdin.close()


def qemu_writes(path: Path) -> bool:
    command = ["qemu-io", "-f", "raw", "-c", "length", str(path)]
    return b"1 MiB" in subprocess.run(command, capture_output=True, check=False).stdout


def qemu_reads(path: Path) -> bool:
    copy = path.with_suffix(".copy")
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", str(path), str(copy)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_image_that_qemu_writes_is_in_use(path: Path) -> None:
    with qemu_holding(path):
        for readonly in (False, True):
            with pytest.raises(DiskError, match="in use"):
                open_image(path, readonly=readonly)
    with open_image(path):
        pass


def test_image_that_qemu_reads_can_be_read(path: Path) -> None:
    with qemu_holding(path, "-r"), open_image(path, readonly=True) as image:
        assert image.size_bytes == 1 << 20


def test_image_that_we_write_is_refused_by_qemu(path: Path) -> None:
    with open_image(path):
        assert not qemu_writes(path)
        assert not qemu_reads(path)
    assert qemu_writes(path)


def test_image_that_we_read_is_shared_with_qemu_reading(path: Path) -> None:
    with open_image(path, readonly=True):
        assert qemu_reads(path)
        assert not qemu_writes(path)

"""Readers other than QEMU: libqcow reads what we write, libvmdk what we read."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from qcow2_oracle import needs_qemu

from ostler.block import create_image, open_image
from ostler.block.formats.qcow2 import Qcow2Image

pyqcow: Any = pytest.importorskip("pyqcow", reason="pip install libqcow-python")
pyvmdk: Any = pytest.importorskip("pyvmdk", reason="pip install libvmdk-python")

MIB = 1 << 20
SIZE = 9 * MIB
# libqcow knows neither subclusters, zstd nor LUKS, and reads compressed clusters wrong, QEMU's too.
KINDS: list[dict[str, Any]] = [
    {},
    {"compat": "0.10"},
    {"cluster_size": 4096},
    {"cluster_size": 2 * MIB},
    {"lazy_refcounts": True},
    {"refcount_bits": 64},
    {"preallocation": "metadata"},
]


def fill(path: Path) -> bytes:
    """Data and holes at places that no table likes; what the disk reads as."""
    dice = random.Random(5)
    truth = bytearray(SIZE)
    with open_image(path) as image:
        for _ in range(60):
            data = dice.randbytes(dice.choice((512, 5000, 70_000)))
            offset = dice.randrange(SIZE - len(data))
            image.write(offset, data)
            truth[offset : offset + len(data)] = data
    return bytes(truth)


def by_libqcow(path: Path) -> bytes:
    file = pyqcow.file()
    file.open(str(path))
    try:
        size: int = file.get_media_size()
        return b"".join(file.read_buffer_at_offset(MIB, at) for at in range(0, size, MIB))
    finally:
        file.close()


@pytest.mark.parametrize("options", KINDS, ids=lambda options: str(options))
def test_libqcow_reads_what_was_written(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, SIZE, **options)
    truth = fill(path)
    assert by_libqcow(path) == truth
    with open_image(path) as image:
        assert isinstance(image, Qcow2Image)
        image.snapshot("before")
        image.write(0, b"after" * 1000)
    assert by_libqcow(path) == (b"after" * 1000 + truth[5000:])


@needs_qemu
@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized", "twoGbMaxExtentFlat"])
def test_vmdk_reads_as_libvmdk_reads_it(subformat: str, tmp_path: Path) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    raw.write_bytes(random.Random(2).randbytes(2 * MIB).ljust(SIZE, b"\0"))
    options = ["-O", "vmdk", "-o", f"subformat={subformat}"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, raw, path], check=True)
    handle = pyvmdk.handle()
    handle.open(str(path))
    handle.open_extent_data_files()
    try:
        theirs = handle.read_buffer_at_offset(handle.get_media_size(), 0)
    finally:
        handle.close()
    with open_image(path, readonly=True) as image:
        assert image.read(0, image.size_bytes) == theirs == raw.read_bytes()

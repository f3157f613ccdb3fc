"""qcow2 files that are shorter than their tables say, as QEMU counts what is wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from qcow2_oracle import needs_qemu, qemu

from ostler.block import create_image, open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.errors import DiskError

MIB = 1 << 20


def cut_image(directory: Path, left_bytes: int) -> Path:
    """10 MiB of data, of which the file keeps the first `left_bytes`."""
    path = directory / "cut.qcow2"
    qemu("create", "-q", "-f", "qcow2", path, "64M")
    qemu("-c", "write -q -P 1 0 10M", path, program="qemu-io")
    with path.open("r+b") as file:
        file.truncate(left_bytes)
    return path


def qemu_errors(path: Path) -> int:
    done = subprocess.run(
        ["qemu-img", "check", "--output=json", path], capture_output=True, check=False
    )
    assert done.returncode == 2
    return int(json.loads(done.stdout)["corruptions"])


@needs_qemu
@pytest.mark.parametrize("left_bytes", [5 * MIB, 5 * MIB + 512, 5 * MIB - 1])
def test_check_of_cut_file_counts_lost_clusters_as_qemu_does(
    left_bytes: int, tmp_path: Path
) -> None:
    path = cut_image(tmp_path, left_bytes)
    with open_image(path, readonly=True) as image:
        assert isinstance(image, Qcow2Image)
        report = image.check()
    assert report.corruptions == qemu_errors(path)
    assert report.leaks == 0
    assert "behind the end of the file" in report.messages[0]


@needs_qemu
def test_reading_a_lost_cluster_says_that_the_image_is_cut_off(tmp_path: Path) -> None:
    with open_image(cut_image(tmp_path, 5 * MIB), readonly=True) as image:
        assert image.read(0, MIB) == b"\1" * MIB
        with pytest.raises(DiskError, match="the image is cut off"):
            image.read(8 * MIB, 4096)


@needs_qemu
def test_writing_into_a_lost_cluster_does_not_hide_the_loss(tmp_path: Path) -> None:
    path = cut_image(tmp_path, 5 * MIB)
    with open_image(path) as image:
        with pytest.raises(DiskError, match="the image is cut off"):
            image.write(8 * MIB, b"x")
        image.write(MIB, b"x")
    assert path.stat().st_size == 5 * MIB


@needs_qemu
def test_half_a_last_cluster_reads_as_zeroes_to_its_end(tmp_path: Path) -> None:
    # QEMU leaves files like this: the last cluster is as long as what was written.
    path = tmp_path / "short.qcow2"
    qemu("create", "-q", "-f", "qcow2", path, "64M")
    qemu("-c", "write -q -P 1 0 4096", path, program="qemu-io")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - size % 65536 - (0 if size % 65536 else 65536) + 4096)
    with open_image(path, readonly=True) as image:
        assert isinstance(image, Qcow2Image)
        assert image.read(0, 8192) == b"\1" * 4096 + bytes(4096)
        assert image.check().is_sound
    qemu("check", path)


@needs_qemu
def test_lost_l2_table_is_an_error_not_zeroes(tmp_path: Path) -> None:
    # The L2 table is the first that is allocated, so it goes with everything behind it.
    path = cut_image(tmp_path, 4 * 65536)
    with open_image(path, readonly=True) as image:
        assert isinstance(image, Qcow2Image)
        with pytest.raises(DiskError, match="cut off"):
            image.read(0, 4096)
        assert image.check().corruptions


def test_header_cut_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_image(path, MIB)
    for length in range(160, 20, -1):
        os.truncate(path, length)
        with pytest.raises(DiskError):
            open_image(path, format="qcow2", readonly=True)


def test_snapshot_whose_id_is_no_text_is_listed_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_image(path, MIB)
    with open_image(path) as image:
        assert isinstance(image, Qcow2Image)
        image.snapshot("one")
        at = image.header.snapshots_offset
    content = path.read_bytes()
    ident = content.index(b"1one", at)
    path.write_bytes(content[:ident] + b"\x97" + content[ident + 1 :])
    with open_image(path, readonly=True) as image:
        assert isinstance(image, Qcow2Image)
        assert image.check().is_sound

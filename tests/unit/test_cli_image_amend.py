"""`ostler image amend`, whose results QEMU takes and reads the same from."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from qcow2_oracle import check_and_compare, needs_qemu, qemu

from ostler.block import open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.cli import invoke

pytestmark = needs_qemu
MIB = 1 << 20
SIZE = 8 * MIB

Amend = Callable[..., str]


@pytest.fixture
def amend(capsys: pytest.CaptureFixture[str]) -> Amend:
    """`ostler image amend -o OPTIONS FILE`, which has to end with `code`: what it says."""

    def run(path: Path, options: str, code: int = 0) -> str:
        assert invoke(["image", "amend", "-o", options, str(path)]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def made(path: Path, options: str, *, snapshot: bool = True) -> bytes:
    """An image of QEMU's with data and zeroes: what it reads as."""
    truth, dice = bytearray(SIZE), random.Random(3)
    qemu("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    with open_image(path) as image:
        assert isinstance(image, Qcow2Image)
        for number in range(20):
            offset, length = dice.randrange(SIZE - 70_000), dice.choice([512, 4096, 70_000])
            truth[offset : offset + length] = dice.randbytes(length)
            image.write(offset, truth[offset : offset + length])
            if snapshot and number == 10:
                image.snapshot("s")
        if image.header.version >= 3 and not snapshot:
            truth[MIB : 3 * MIB] = bytes(2 * MIB)
            image.write_zeroes(MIB, 2 * MIB, unmap=False)
    return bytes(truth)


def data_of(path: Path) -> dict[str, object]:
    info = json.loads(qemu("info", "--output=json", path))
    return dict(info["format-specific"]["data"])


@pytest.mark.parametrize("bits", [2, 8, 32, 64])
@pytest.mark.parametrize("cluster", [512, 65536])
def test_refcounts_of_another_width_count_the_same(
    bits: int, cluster: int, amend: Amend, tmp_path: Path
) -> None:
    path = tmp_path / "disk.qcow2"
    truth = made(path, f"cluster_size={cluster}")
    amend(path, f"refcount_bits={bits}")
    assert data_of(path)["refcount-bits"] == bits
    check_and_compare(path, truth)
    with open_image(path) as image:
        assert isinstance(image, Qcow2Image)
        image.write(0, b"x" * 512)
        image.delete_snapshot("s")
    check_and_compare(path, b"x" * 512 + truth[512:])
    amend(path, "refcount_bits=16")
    check_and_compare(path, b"x" * 512 + truth[512:])


def test_refcounts_too_narrow_for_the_snapshots_are_refused(amend: Amend, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    truth = made(path, "cluster_size=4096")
    assert "delete snapshots" in amend(path, "refcount_bits=1", code=2)
    assert data_of(path)["refcount-bits"] == 16
    check_and_compare(path, truth)


def test_version_goes_up_and_down_without_changing_what_is_read(
    amend: Amend, tmp_path: Path
) -> None:
    path = tmp_path / "disk.qcow2"
    truth = made(path, "compat=0.10", snapshot=False)
    amend(path, "compat=1.1,lazy_refcounts=on")
    assert data_of(path)["lazy-refcounts"] is True
    with open_image(path) as image:
        image.write_zeroes(4 * MIB, MIB, unmap=False)
    truth = truth[: 4 * MIB] + bytes(MIB) + truth[5 * MIB :]
    check_and_compare(path, truth)
    amend(path, "compat=0.10")
    assert data_of(path)["compat"] == "0.10"
    check_and_compare(path, truth)


def test_zero_clusters_of_an_overlay_become_data_in_version_2(amend: Amend, tmp_path: Path) -> None:
    base, path = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    base.write_bytes(b"\7" * SIZE)
    qemu("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    with open_image(path) as image:
        image.write_zeroes(MIB, 3 * MIB + 65536)
    amend(path, "compat=v2")
    check_and_compare(path, b"\7" * MIB + bytes(3 * MIB + 65536) + b"\7" * (4 * MIB - 65536))


@pytest.mark.parametrize(
    ("image", "options", "what"),
    [
        ("compression_type=zstd", "compat=0.10", "version 2 has no zstd"),
        ("extended_l2=on", "compat=0.10", "extended L2"),
        ("refcount_bits=8", "compat=0.10", "refcount_bits other than 16"),
        ("cluster_size=65536", "size=1M", "resize --shrink"),
        ("cluster_size=65536", "refcount_bits=3", "power of two"),
        ("cluster_size=65536", "backing_file=x", "image rebase"),
        ("cluster_size=65536", "cluster_size=4096", "no option 'cluster_size'"),
        ("compat=0.10", "lazy_refcounts=on", "version 2"),
    ],
)
def test_amend_refuses_what_cannot_be(
    image: str, options: str, what: str, amend: Amend, tmp_path: Path
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu("create", "-q", "-f", "qcow2", "-o", image, path, "8M")
    before = path.read_bytes()
    said = amend(path, options, code=2)
    assert what in said
    assert said.count("\n") == 1
    assert path.read_bytes() == before


def test_amended_size_is_the_disks(amend: Amend, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    truth = made(path, "cluster_size=65536")
    amend(path, "size=12M")
    check_and_compare(path, truth + bytes(4 * MIB))

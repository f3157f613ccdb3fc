"""Every kind of image that qemu-img creates in formats we only read is read equal."""

from __future__ import annotations

import json
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ostler.block import open_image
from ostler.block.image import Image
from ostler.cli.image.info import describe

MIB = 1 << 20
# Subformats and options of qemu-img create, per format.
KINDS = {
    "vdi": ["", "static=on", "preallocation=full"],
    "vpc": ["", "subformat=fixed", "force_size=on", "subformat=fixed,force_size=on"],
    "vhdx": [
        "", "subformat=fixed", "block_size=1M", "block_size=256M", "log_size=2M",
        "subformat=fixed,block_size=2M", "block_state_zero=on,block_size=1M",
    ],
    "vmdk": [
        "", "subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat", "subformat=streamOptimized", "zeroed_grain=on",
        "compat6=on", "adapter_type=lsilogic", "hwversion=9,toolsversion=7",
    ],
}  # fmt: skip
CASES = [(format, options) for format, kinds in KINDS.items() for options in kinds]
SIZES = [512, 3 * MIB + 512, 70 * MIB]


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], check=True, capture_output=True, text=True
    )
    return done.stdout


def content(size: int) -> bytes:
    """A disk with data at its edges, in odd places, and much that is zero."""
    dice, disk = random.Random(size), bytearray(size)
    for _ in range(12):
        offset = dice.randrange(size)
        piece = dice.randbytes(min(dice.choice((1, 700, 70_000)), size - offset))
        disk[offset : offset + len(piece)] = piece
    disk[:1], disk[-1:] = b"\x01", b"\x02"
    return bytes(disk)


def whole(image: Image) -> bytes:
    """All of the disk in pieces that fall across the blocks of every format."""
    step = MIB - 1536
    return b"".join(
        image.read(offset, min(step, image.size_bytes - offset))
        for offset in range(0, image.size_bytes, step)
    )


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size}-bytes")
def raw(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "disk.raw"
    path.write_bytes(content(request.param))
    return path


@pytest.mark.parametrize(("format", "options"), CASES, ids=lambda value: value or "default")
def test_image_of_qemu_img_is_read_equal(
    format: str, options: str, raw: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"disk.{format}"
    chosen = ["-o", options] if options else []
    qemu_img("convert", "-f", "raw", "-O", format, *chosen, raw, path)
    # A fixed VHD looks like a raw disk, to QEMU as well: the format has to be given.
    given = format if "fixed" in options else None
    with open_image(path, format=given, readonly=True) as image:
        assert image.format == format
        qemu_img("convert", "-f", format, "-O", "raw", path, tmp_path / "again.raw")
        wanted = (tmp_path / "again.raw").read_bytes()
        assert image.size_bytes == len(wanted)
        assert whole(image) == wanted
        holes = [extent for extent in image.extents(0, image.size_bytes) if extent.zero]
        for hole in holes:
            assert not any(wanted[hole.offset : hole.end])


def test_vmdk_of_several_extents_is_read_across_them(tmp_path: Path) -> None:
    # Extents of 2 GiB, written at their borders: sparse, so that the test is quick.
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    border = 0x7FFF0000
    with raw.open("wb") as file:
        file.truncate(2 * border + MIB)
        for offset in (0, border - 3, 2 * border - 70_000):
            file.seek(offset)
            file.write(random.Random(offset).randbytes(100_000))
    qemu_img(
        "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", raw, path
    )
    assert len(list(tmp_path.glob("disk-s*.vmdk"))) == 3
    with open_image(path, readonly=True) as image, raw.open("rb") as file:
        assert image.size_bytes == 2 * border + MIB
        for offset in (0, border - 100_000, 2 * border - 100_000):
            file.seek(offset)
            assert image.read(offset, 300_000) == file.read(300_000)


def test_vmdk_with_a_parent_reads_what_it_does_not_hold(tmp_path: Path) -> None:
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    (tmp_path / "disk.raw").write_bytes(content(3 * MIB))
    qemu_img("convert", "-f", "raw", "-O", "vmdk", tmp_path / "disk.raw", base)
    options = ["-o", "zeroed_grain=on", "-F", "vmdk", "-b", "base.vmdk"]
    qemu_img("create", "-f", "vmdk", *options, top)
    changes = ["-c", "write -P 7 1M 64k", "-c", "write -z 0 64k"]
    subprocess.run(["qemu-io", "-f", "vmdk", *changes, str(top)], check=True, capture_output=True)
    qemu_img("convert", "-f", "vmdk", "-O", "raw", top, tmp_path / "top.raw")
    with open_image(top, readonly=True) as image:
        assert whole(image) == (tmp_path / "top.raw").read_bytes()
        states = [extent.allocated for extent in image.extents(0, image.size_bytes)]
        assert states == [True, False, True, False]


@pytest.mark.parametrize("format", KINDS)
def test_sparse_image_of_a_terabyte_lists_its_extents_at_once(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"disk.{format}"
    qemu_img("create", "-f", format, path, "1T")
    with open_image(path, readonly=True) as image:
        extents = list(image.extents(0, image.size_bytes))
        assert sum(extent.length for extent in extents) == image.size_bytes
        assert all(extent.zero for extent in extents)


@pytest.mark.parametrize(
    ("format", "options", "command"),
    [
        ("vmdk", "", "vmdkinfo"),
        ("vmdk", "subformat=streamOptimized", "vmdkinfo"),
        ("vpc", "", "vhdiinfo"),
        ("vpc", "force_size=on", "vhdiinfo"),
        ("vhdx", "", "vhdiinfo"),
    ],
)
def test_size_is_what_a_reader_other_than_qemu_says(
    format: str, options: str, command: str, tmp_path: Path
) -> None:
    path = tmp_path / f"disk.{format}"
    qemu_img("create", "-f", format, *(["-o", options] if options else []), path, 70 * MIB)
    told = subprocess.run([command, path], check=True, capture_output=True, text=True).stdout
    with open_image(path, readonly=True) as image:
        assert f"({image.size_bytes} bytes)" in told


@pytest.mark.parametrize(("format", "options"), CASES, ids=lambda value: value or "default")
def test_facts_are_those_that_qemu_shows(format: str, options: str, tmp_path: Path) -> None:
    path = tmp_path / f"disk.{format}"
    qemu_img("create", "-f", format, *(["-o", options] if options else []), path, 7 * MIB)
    theirs = json.loads(qemu_img("info", "--output=json", "-f", format, path))
    with open_image(path, format=format, readonly=True) as image:
        ours = describe(image)
    # Fixed images have no blocks that matter; QEMU shows what the header has.
    for name in ("virtual-size", "cluster-size", "format", "format-specific"):
        assert ours.get(name) == theirs.get(name), name


def test_many_threads_read_what_one_does(tmp_path: Path) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.vmdk"
    raw.write_bytes(random.Random(8).randbytes(6 * MIB))
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, path)
    wanted = raw.read_bytes()
    with open_image(path, readonly=True) as image, ThreadPoolExecutor(8) as pool:

        def reads_right(seed: int) -> bool:
            dice = random.Random(seed)
            offsets = [dice.randrange(6 * MIB - 100_000) for _ in range(20)]
            return all(image.read(at, 100_000) == wanted[at : at + 100_000] for at in offsets)

        assert all(pool.map(reads_right, range(8)))

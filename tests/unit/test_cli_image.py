"""`ostler image` beside qemu-img: the same files, output and exit codes."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qcow2_oracle import check_and_compare, needs_qemu, qemu

from ostler.block import create_image, open_image
from ostler.cli import invoke

pytestmark = needs_qemu
Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `ostler image ...`, which has to end with `code`: what it prints."""

    def run(*arguments: str | Path, code: int = 0) -> str:
        done = invoke(["image", *(str(argument) for argument in arguments)])
        printed = capsys.readouterr()
        assert done == code, printed.out + printed.err
        return printed.out + printed.err

    return run


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """8 MiB and a bit: a third zero, a third text, a third noise."""
    dice, path = random.Random(1), tmp_path / "source.raw"
    pieces = []
    for number in range(129):
        text = (b"line %d of a text\n" % number) * 6000
        pieces.append(dice.choice([bytes(65536), text[:65536], dice.randbytes(65536)]))
    path.write_bytes(b"".join(pieces)[: (8 << 20) + 7 * 512])
    return path


TARGETS = [
    "",
    "-c",
    "-c -o compression_type=zstd",
    "-c -o cluster_size=4k",
    "-c -o cluster_size=2M",
    "-o extended_l2=on,cluster_size=32k",
    "-c -o extended_l2=on,cluster_size=32k",
    "-o preallocation=metadata",
    "-o compat=0.10",
    "-c -o refcount_bits=1",
    "-o lazy_refcounts=on",
    "-S 0",
]


@pytest.mark.parametrize("options", TARGETS)
def test_convert_writes_what_qemu_reads_and_reads_what_qemu_writes(
    options: str, run: Run, raw: Path, tmp_path: Path
) -> None:
    ours, theirs, back = (tmp_path / name for name in ("ours", "theirs", "back"))
    run("convert", "-f", "raw", "-O", "qcow2", *options.split(), raw, ours)
    check_and_compare(ours, raw.read_bytes())
    assert "No errors" in run("check", ours)
    qemu("convert", "-f", "raw", "-O", "qcow2", *options.split(), raw, theirs)
    assert "No errors" in run("check", theirs)
    run("convert", "-O", "raw", theirs, back)
    assert back.read_bytes() == raw.read_bytes()
    assert "identical" in run("compare", ours, theirs)
    assert ours.stat().st_size <= theirs.stat().st_size * 1.03
    assert mapped(run("map", "--output", "json", theirs)) == mapped(
        qemu("map", "--output", "json", theirs)
    )
    if "-c" not in options:
        # qemu-img has no way to print where a compressed cluster is.
        assert run("map", theirs) == qemu("map", theirs)


def mapped(text: str) -> list[dict[str, Any]]:
    """Newer versions of qemu-img say what is compressed; the one here does not."""
    return [
        {key: value for key, value in run.items() if key != "compressed"}
        for run in json.loads(text)
    ]


def test_info_and_check_say_what_qemu_img_says(run: Run, tmp_path: Path) -> None:
    base, overlay = tmp_path / "base.qcow2", tmp_path / "overlay.qcow2"
    qemu("create", "-f", "qcow2", base, "10M")
    qemu("snapshot", "-c", "one", base)
    qemu("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", overlay)
    qemu("-c", "write 64k 128k", overlay, program="qemu-io")
    for image in (base, overlay):
        for options in ([], ["--backing-chain"]):
            assert run("info", *options, image) == qemu("info", *options, image)
            ours = json.loads(run("info", "--output", "json", *options, image))
            assert ours == json.loads(qemu("info", "--output", "json", *options, image))
        assert run("check", image) == qemu("check", image)
        ours = json.loads(run("check", "--output", "json", image))
        assert ours == json.loads(qemu("check", "--output", "json", image))
    assert run("snapshot", "-l", base) == qemu("snapshot", "-l", base)
    assert mapped(run("map", "--output", "json", overlay)) == mapped(
        qemu("map", "--output", "json", overlay)
    )


def test_compare_ends_with_qemu_imgs_exit_codes(run: Run, raw: Path, tmp_path: Path) -> None:
    longer, other = tmp_path / "longer", tmp_path / "other"
    longer.write_bytes(raw.read_bytes() + bytes(4096))
    other.write_bytes(b"\xff" + raw.read_bytes()[1:])
    for arguments, code in (
        ([raw, longer], 0),
        (["-s", raw, longer], 1),
        ([raw, other], 1),
        ([raw, tmp_path / "nothing"], 2),
    ):
        both = ("-f", "raw", "-F", "raw")
        ours = run("compare", *both, *arguments, code=code)
        theirs = subprocess.run(
            ["qemu-img", "compare", *both, *arguments], capture_output=True, text=True, check=False
        )
        assert theirs.returncode == code
        assert code == 2 or ours == theirs.stdout


def test_check_tells_leaks_from_damage_and_repairs_both(
    run: Run, raw: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow2"
    run("convert", "-f", "raw", "-O", "qcow2", raw, image)
    content = bytearray(image.read_bytes())
    # Refcounts are at 128 KiB, 2 bytes each: one that nobody refers to, then one too low.
    content[0x20000 + 2 * 120 : 0x20000 + 2 * 120 + 2] = b"\0\1"
    image.write_bytes(content + bytes(65536 * 40))
    highest = len(content) // 65536 + 5
    with image.open("r+b") as file:
        file.seek(0x20000 + 2 * highest)
        file.write(b"\0\1")
    assert "leaked" in run("check", image, code=3)
    qemu("check", image, code=3)
    assert "repaired" in run("check", "-r", "leaks", image)
    check_and_compare(image, raw.read_bytes())
    with image.open("r+b") as file:
        file.seek(0x20000 + 2 * 6)
        file.write(b"\0\0")
    assert "errors were found" in run("check", image, code=2)
    assert "repaired" in run("check", "-r", "all", image)
    check_and_compare(image, raw.read_bytes())


def test_check_rebuilds_refcounts_that_are_gone(run: Run, raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    run("convert", "-f", "raw", "-O", "qcow2", raw, image)
    with image.open("r+b") as file:
        file.seek(0x10000)
        file.write(bytes(8))
    run("check", image, code=2)
    run("check", "-r", "all", image)
    check_and_compare(image, raw.read_bytes())


def test_check_of_raw_is_unsupported(run: Run, raw: Path) -> None:
    assert "no checks" in run("check", "-f", "raw", raw, code=63)


def test_chain_is_rebased_and_committed_without_changing_what_is_read(
    run: Run, raw: Path, tmp_path: Path
) -> None:
    dice, truth = random.Random(2), bytearray(raw.read_bytes())
    run("create", "-b", "source.raw", "-F", "raw", tmp_path / "one")
    run("create", "-b", "one", tmp_path / "two", "12M")
    truth += bytes((12 << 20) - len(truth))
    for name in ("one", "two"):
        with open_image(tmp_path / name) as image:
            for _ in range(20):
                offset, length = dice.randrange(image.size_bytes - 140_000), dice.randrange(140_000)
                data = dice.choice([bytes(length), dice.randbytes(length)])
                write = image.write_zeroes if not any(data) else None
                write(offset, length) if write else image.write(offset, data)
                truth[offset : offset + length] = data
    two = tmp_path / "two"
    check_and_compare(two, truth)
    run("rebase", "-b", "source.raw", "-F", "raw", two)
    check_and_compare(two, truth)
    run("rebase", "-b", "", two)
    check_and_compare(two, truth)
    assert "backing" not in run("info", two)
    run("create", "-b", "two", tmp_path / "three")
    run("create", "-b", "three", tmp_path / "four", "14M")
    truth += bytes(2 << 20)
    for name in ("three", "four"):
        with open_image(tmp_path / name) as image:
            image.write(12345, dice.randbytes(100_000))
            truth[12345:112345] = image.read(12345, 100_000)
    run("commit", tmp_path / "four")
    check_and_compare(tmp_path / "three", truth)
    check_and_compare(tmp_path / "four", truth)
    run("commit", "-b", two, tmp_path / "four")
    check_and_compare(two, truth)


def test_create_over_a_chain_that_loops_is_refused(run: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run("create", one, "1M")
    run("create", "-b", "one", two)
    run("rebase", "-u", "-b", "two", "-F", "qcow2", one)
    assert "leads back" in run("info", "--backing-chain", one, code=2)


def test_backing_file_of_guessed_format_may_not_name_files(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret".ljust(512))
    run("create", "-b", "secret", "-F", "raw", tmp_path / "disguised")
    run("create", "-u", "-b", "disguised", tmp_path / "overlay", "1M")
    assert "unknown format and names files" in run(
        "convert", tmp_path / "overlay", tmp_path / "out", code=2
    )


def test_disk_probed_as_raw_cannot_become_another_format(tmp_path: Path) -> None:
    from ostler.errors import DiskError

    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    with open_image(path) as image:
        image.write(0, b"QFI")
        with pytest.raises(DiskError, match="look like another format"):
            image.write(2, b"I\xfb")
    with open_image(path, format="raw") as image:
        image.write(0, b"QFI\xfb")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "cluster_size=3k"], "power of two"),
        (["-o", "refcount_bits=7"], "power of two"),
        (["-o", "extended_l2=on,cluster_size=4k"], "extended_l2 needs"),
        (["-o", "compat=0.10,lazy_refcounts=on"], "not in version 2"),
        (["-o", "colour=red"], "no option 'colour'"),
        (["-f", "floppy"], "no disk image format"),
        (["-b", "nothing"], "no such disk image"),
    ],
)
def test_create_with_a_wrong_option_names_it(
    options: list[str], message: str, run: Run, tmp_path: Path
) -> None:
    assert message in run("create", *options, tmp_path / "disk", "1M", code=2)


def test_header_field_that_is_wrong_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    for offset, value, name in (
        (4, 9, "version"),
        (20, 40, "cluster_bits"),
        (36, 1 << 30, "l1_size"),
        (40, 0x1234, "l1_table_offset"),
        (56, 1 << 20, "refcount_table_clusters"),
        (72 + 3, 0x80000000, "features that are not known"),
        (96, 9, "refcount_order"),
        (100, 3, "header_length"),
    ):
        create_image(path, 1 << 20)
        content = bytearray(path.read_bytes())
        size = 8 if offset == 40 else 4
        content[offset : offset + size] = value.to_bytes(size, "big")
        path.write_bytes(content)
        assert name in run("info", path, code=2)


@pytest.mark.parametrize(
    "options", ["", "cluster_size=4k", "refcount_bits=64", "extended_l2=on,cluster_size=128k"]
)
def test_measure_says_what_qemu_img_says(options: str, run: Run, raw: Path) -> None:
    chosen = ["-O", "qcow2", *(["-o", options] if options else [])]
    for what in (["--size", "10G"], ["--size", "1M"]):
        ours = json.loads(run("measure", "--output", "json", *chosen, *what))
        assert ours == json.loads(qemu("measure", "--output", "json", *chosen, *what))
    what = ["-f", "raw", str(raw)]
    ours = json.loads(run("measure", "--output", "json", *chosen, *what))
    assert ours == json.loads(qemu("measure", "--output", "json", *chosen, *what))


def test_dd_copies_a_part(run: Run, raw: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    run("dd", "-f", "raw", "-O", "qcow2", f"if={raw}", f"of={part}", "bs=64k", "skip=3", "count=9")
    check_and_compare(part, raw.read_bytes()[3 << 16 : 12 << 16])
    assert "is none of" in run("dd", "iv=x", code=2)


def test_bench_writes_an_image_that_stays_sound(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    run("create", image, "16M")
    assert "Run completed" in run("bench", "-w", "-c", "1000", "-d", "8", "--pattern", "7", image)
    assert "Run completed" in run("bench", "-c", "1000", image)
    check_and_compare(image, b"\7" * 4096000 + bytes((16 << 20) - 4096000))

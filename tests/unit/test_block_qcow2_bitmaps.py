"""Persistent bitmaps, written and read by QEMU and by us."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from qcow2_oracle import needs_qemu, qemu
from typer.testing import CliRunner

from ostler.block import open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.qcow2.recording import find_map
from ostler.cli.image import build_app
from ostler.errors import DiskError

pytestmark = needs_qemu
MIB = 1 << 20


def opened(path: Path, **how: Any) -> Qcow2Image:
    image = open_image(path, **how)
    assert isinstance(image, Qcow2Image)
    return image


def make(directory: Path, *options: str) -> Path:
    path = directory / "disk.qcow2"
    qemu("create", "-q", "-f", "qcow2", *options, path, "64M")
    return path


def dirty_by_qemu(path: Path, name: str, directory: Path) -> list[tuple[int, int]]:
    """The ranges that a bitmap marks, as qemu-nbd exports it."""
    # One that is ending still has its files.
    own = Path(tempfile.mkdtemp(dir=directory))
    socket, pid = own / "nbd.sock", own / "nbd.pid"
    # It is in the background when it listens.
    listen: list[str | Path] = ["--fork", "--persistent", "--pid-file", pid, "-k", socket]
    qemu(*listen, "-r", "-f", "qcow2", "-B", name, path, program="qemu-nbd")
    try:
        context, where = f"qemu:dirty-bitmap:{name}", f"nbd+unix:///?socket={socket}"
        done = subprocess.run(
            ["nbdinfo", "--json", f"--map={context}", where], capture_output=True, check=True
        )
    finally:
        os.kill(int(pid.read_text()), signal.SIGTERM)
        while socket.exists():
            os.sched_yield()
    runs = json.loads(done.stdout)
    return [(run["offset"], run["length"]) for run in runs if run["type"] == 1]


def dirty_by_us(path: Path, name: str) -> list[tuple[int, int]]:
    with opened(path, readonly=True) as image:
        found = find_map(image, name)
    bits, grain, runs = found.bits(), found.granularity_bytes, list[tuple[int, int]]()
    for granule in range(-(-found.size_bytes // grain)):
        if bits[granule // 8] >> granule % 8 & 1:
            start = granule * grain
            if runs and sum(runs[-1]) == start:
                start, _ = runs.pop()
            runs.append((start, min((granule + 1) * grain, found.size_bytes) - start))
    return runs


def flags_by_qemu(path: Path) -> dict[str, list[str]]:
    info = json.loads(qemu("info", "--output=json", path))
    bitmaps = info["format-specific"]["data"].get("bitmaps", [])
    return {bitmap["name"]: bitmap["flags"] for bitmap in bitmaps}


@pytest.mark.parametrize("cluster", [512, 65536])
def test_writes_are_marked_for_qemu_in_bitmaps_that_record(cluster: int, tmp_path: Path) -> None:
    path = make(tmp_path, "-o", f"cluster_size={cluster}")
    qemu("bitmap", "--add", "-g", "4096", path, "on")
    qemu("bitmap", "--add", "--disable", path, "off")
    qemu("-c", "write -q 1M 64k", path, program="qemu-io")
    dice, written = random.Random(7), set(range(256, 272))
    with opened(path) as image:
        for _ in range(40):
            offset, length = dice.randrange(63 * MIB), dice.choice([1, 4096, 30_000])
            match dice.randrange(3):
                case 0:
                    image.write(offset, b"x" * length)
                case 1:
                    image.write_zeroes(offset, length)
                case _:
                    image.discard(offset, length)
            written.update(range(offset >> 12, ((offset + length - 1) >> 12) + 1))
    qemu("check", path)
    assert flags_by_qemu(path) == {"on": ["auto"], "off": []}
    assert dirty_by_us(path, "off") == []
    found = dirty_by_qemu(path, "on", tmp_path)
    assert {at >> 12 for run in found for at in range(run[0], sum(run), 4096)} == written
    assert dirty_by_us(path, "on") == found


def test_killed_writer_leaves_its_bitmap_in_use(tmp_path: Path) -> None:
    path = make(tmp_path)
    qemu("bitmap", "--add", path, "on")
    qemu("bitmap", "--add", "--disable", path, "off")
    child = os.fork()
    if child == 0:
        image = opened(path)
        image.write(0, b"x" * 512)
        image.flush()
        os._exit(0)
    os.waitpid(child, 0)
    assert flags_by_qemu(path) == {"on": ["in-use", "auto"], "off": []}
    qemu("check", path)
    with opened(path) as image:
        image.write(MIB, b"x")
        with pytest.raises(DiskError, match="not saved"):
            image.record().merge("off", image.record().usable("on")[1])
        image.record().remove("on")
    qemu("check", path)
    assert flags_by_qemu(path) == {"off": []}


def test_bitmap_that_another_program_passed_over_is_forgotten(tmp_path: Path) -> None:
    path = make(tmp_path)
    qemu("bitmap", "--add", path, "on")
    with path.open("r+b") as file:
        file.seek(88)
        file.write(bytes(8))
    with opened(path) as image:
        assert image.bitmaps == ()
        assert image.check(repair="leaks").is_sound
    qemu("check", path)


def test_resize_keeps_what_bitmaps_say_of_the_rest(tmp_path: Path) -> None:
    path = make(tmp_path)
    qemu("bitmap", "--add", path, "on")
    with opened(path) as image:
        image.write(20 * MIB, b"x")
        image.resize(30 * MIB)
        image.resize(100 * MIB)
        image.write(99 * MIB, b"x")
    qemu("check", path)
    expected = [(20 * MIB, 65536), (99 * MIB, 65536)]
    assert dirty_by_qemu(path, "on", tmp_path) == dirty_by_us(path, "on") == expected


def test_snapshot_is_not_applied_under_a_bitmap(tmp_path: Path) -> None:
    path = make(tmp_path)
    qemu("bitmap", "--add", path, "on")
    with opened(path) as image:
        image.snapshot("s")
        with pytest.raises(DiskError, match="has bitmaps"):
            image.apply_snapshot("s")
    qemu("check", path)


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(build_app(), ["bitmap", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_bitmap_verb_does_what_qemu_img_does(tmp_path: Path) -> None:
    ours, theirs = make(tmp_path), tmp_path / "theirs.qcow2"
    theirs.write_bytes(ours.read_bytes())
    steps = [
        ["--add", "-g", "32k", "a"],
        ["--add", "--disable", "b"],
        ["--disable", "a"],
        ["--enable", "b"],
        ["--add", "c", "--merge", "a"],
        ["--add", "d"],
        ["--clear", "--merge", "b", "d"],
        ["--remove", "c"],
    ]
    for number, step in enumerate(steps):
        arguments = [argument for argument in step if argument not in "abcd"]
        name = next(argument for argument in step if argument in "abcd")
        if "--merge" in step:
            source = step[step.index("--merge") + 1]
            name = next(each for each in step if each in "abcd" and each != source)
            arguments.append(source)
        run(*arguments, ours, name)
        qemu("bitmap", *arguments, theirs, name)
        for path in (ours, theirs):
            qemu("-c", f"write -q {number}M 1k", path, program="qemu-io")
        assert flags_by_qemu(ours) == flags_by_qemu(theirs)
    qemu("check", ours)
    for bitmap in "abd":
        assert dirty_by_us(ours, bitmap) == dirty_by_qemu(theirs, bitmap, tmp_path)


def test_bitmap_verb_merges_from_another_image(tmp_path: Path) -> None:
    path, other = make(tmp_path), tmp_path / "other.qcow2"
    qemu("create", "-q", "-f", "qcow2", other, "64M")
    qemu("bitmap", "--add", other, "theirs")
    qemu("-c", "write -q 5M 1k", other, program="qemu-io")
    run("--add", "--merge", "theirs", "-b", other, "-F", "qcow2", path, "ours")
    assert dirty_by_qemu(path, "ours", tmp_path) == [(5 * MIB, 65536)]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--add"], "already"),
        (["--remove", "--clear"], "there is no bitmap 'on'"),
        (["--merge", "none"], "there is: on"),
        ([], "give --add"),
        (["--clear", "-g", "4k"], "leave it out"),
    ],
)
def test_bitmap_verb_refuses_in_one_line(arguments: list[str], what: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    qemu("bitmap", "--add", path, "on")
    done = CliRunner().invoke(build_app(), ["bitmap", *arguments, str(path), "on"])
    assert what in str(done.exception)
    qemu("check", path)


@pytest.mark.parametrize("granularity", [100, 256, 1 << 32])
def test_bitmap_of_impossible_granularity_is_refused(granularity: int, tmp_path: Path) -> None:
    with opened(make(tmp_path)) as image, pytest.raises(DiskError, match="not a power of two"):
        image.record().add("x", granularity)


def test_damaged_bitmap_table_is_named_when_the_image_is_opened_for_writing(
    tmp_path: Path,
) -> None:
    path = make(tmp_path)
    qemu("bitmap", "--add", path, "on")
    raw = bytearray(path.read_bytes())
    with opened(path, readonly=True) as image:
        bitmap = image.bitmaps[0]
    at = raw.index(bitmap.pack()) + 8
    raw[at : at + 4] = (7).to_bytes(4, "big")
    path.write_bytes(raw)
    with pytest.raises(DiskError, match="bitmap_table_size of bitmap 'on' is 7, not 1"):
        opened(path)


def test_bitmaps_are_converted_with_the_image(tmp_path: Path) -> None:
    path, target = make(tmp_path), tmp_path / "new.qcow2"
    qemu("bitmap", "--add", "-g", "32k", path, "on")
    qemu("bitmap", "--add", path, "off")
    with opened(path) as image:
        image.write(5 * MIB, b"x" * MIB)
        image.record().disable("off")
    command = ["convert", "--bitmaps", "-O", "qcow2", str(path), str(target)]
    result = CliRunner().invoke(build_app(), command)
    assert result.exit_code == 0, result.output
    qemu("check", target)
    marked = []
    for number, (where, name) in enumerate(product((path, target), ("on", "off"))):
        directory = tmp_path / str(number)
        directory.mkdir()
        marked.append(dirty_by_qemu(where, name, directory))
    assert marked[:2] == marked[2:]
    assert marked[0] == [(5 * MIB, MIB)]
    with opened(path, readonly=True) as old, opened(target, readonly=True) as new:
        facts = [bitmap.facts() for bitmap in old.bitmaps]
        assert [bitmap.facts() for bitmap in new.bitmaps] == facts


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--bitmaps", "-O", "raw"], "raw has no bitmaps"),
        (["--skip-broken-bitmaps", "-O", "qcow2"], "is for --bitmaps"),
    ],
)
def test_bitmaps_that_cannot_be_converted_are_refused(
    tmp_path: Path, words: list[str], why: str
) -> None:
    path = make(tmp_path)
    result = CliRunner().invoke(build_app(), ["convert", *words, str(path), str(tmp_path / "new")])
    assert why in str(result.exception)

"""A process that runs jobs on a disk in use is killed: what was flushed is where the disk was."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from qcow2_oracle import needs_qemu, qemu
from test_block_qcow2_kill import BLOCK, BLOCKS, check, content, script

from ostler.block import create_image
from ostler.block.image import Opening, open_with
from ostler.block.live import LiveImage

KILLS = 25
VERBS = ("commit", "stream", "mirror", "backup")


def use_until_killed(start: Path, verb: str, blocks: list[int], first: int, told: int) -> None:
    """In a child: write and flush, one job after the other meanwhile; say what is flushed where."""
    how = Opening()
    live = LiveImage(open_with(str(start), None, how), how)
    os.write(told, b"open\n")
    for number in range(first, len(blocks)):
        live.disk.write(blocks[number] * BLOCK, content(blocks[number], number + 1))
        if number % 10 == 9:
            live.disk.flush()
            os.write(told, f"{number + 1} {live.name}\n".encode())
        if live.job is None or not live.job.running:
            start_next(live, verb, start.parent / f"{os.getpid()}-{number}")


def start_next(live: LiveImage, verb: str, new: Path) -> None:
    """The job that is tested, or an overlay for it to work on."""
    if verb == "mirror":
        live.mirror(new)
    elif verb == "backup":
        # Slow enough to be killed in the middle.
        live.backup(new, limit_bytes_s=BLOCK * BLOCKS * 20)
    elif len(live.files) == 1:
        live.overlay(new)
    elif verb == "commit":
        live.commit()
    else:
        live.stream()


def killed(
    start: Path, verb: str, blocks: list[int], first: int, after_s: float
) -> tuple[int, Path]:
    """Start a child and kill it: how many writes it said are flushed, and the disk's image then."""
    reading, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            use_until_killed(start, verb, blocks, first, told)
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.readline() == b"open\n"
        lines = [pipe.readline()]
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines += pipe.readlines()
    count, name = [line for line in lines if line.endswith(b"\n")][-1].split()
    return int(count), Path(os.fsdecode(name))


@needs_qemu
@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_disk_whose_job_is_killed_has_all_that_was_flushed(verb: str, tmp_path: Path) -> None:
    dice = random.Random(verb)
    path, blocks, flushed = tmp_path / "base", script(VERBS.index(verb)), 0
    create_image(path, BLOCKS * BLOCK)
    paths = {path}
    for _ in range(KILLS):
        flushed, path = killed(path, verb, blocks, flushed, dice.random() * 0.15)
        check(path, blocks, flushed, lazy=False)
        paths.add(path)
    if verb == "backup":
        copies = [path for path in tmp_path.iterdir() if path not in paths]
        assert any(copy.suffix == ".part" for copy in copies), "none was killed"
        for copy in copies:
            if copy.suffix != ".part":
                check(copy, blocks, 0, lazy=False)
    else:
        assert len(paths) > 1, "no job was under way"
    qemu("check", "-r", "leaks", path)

"""A process that writes an image is killed at random moments: what it flushed is there."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest
from qcow2_oracle import needs_qemu

from ostler.block import create_image, open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.qcow2.header import Incompatible

BLOCK, BLOCKS = 4096, 512
SECTOR = 512
ROUNDS, KILLS = 5, 100


def content(block: int, number: int) -> bytes:
    """What write `number` puts into a block."""
    return sector(block, number) * (BLOCK // SECTOR)


def sector(block: int, number: int) -> bytes:
    """What write `number` puts into each sector of a block."""
    return struct.pack("<QQ", block, number) * (SECTOR // 16)


def script(seed: int) -> list[int]:
    """The blocks that are written, in order; every tenth write is followed by a flush."""
    dice = random.Random(seed)
    return [dice.randrange(BLOCKS) for _ in range(400_000)]


def write_until_killed(path: Path, blocks: list[int], first: int, told: int) -> None:
    """In a child: write, flush, and say how far everything is flushed."""
    with open_image(path) as image:
        assert isinstance(image, Qcow2Image)
        os.write(told, bytes(8))
        for number in range(first, len(blocks)):
            image.write(blocks[number] * BLOCK, content(blocks[number], number + 1))
            if number % 10 == 9:
                image.flush()
                os.write(told, struct.pack("<Q", number + 1))
            if number % 97 == 96:
                image.snapshot(f"s{number % 3}", again=True)
                if len(image.snapshots) > 2:
                    image.delete_snapshot(image.snapshots[0].id)
                if number % 2:
                    # The same content: what is killed meanwhile shows in the tables.
                    image.apply_snapshot(image.snapshots[-1].id)


def killed_writer(path: Path, blocks: list[int], first: int, flushes: int, after_s: float) -> int:
    """Start a writer and kill it some time after `flushes`: how many writes it said are flushed."""
    reading, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(path, blocks, first, told)
        finally:
            os._exit(0)
    os.close(told)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        pipe.read(8)  # it has opened the image
        said = b"".join(pipe.read(8) for _ in range(flushes))
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said += pipe.read()
    whole = len(said) // 8 * 8
    return max([first, *(int(number) for (number,) in struct.iter_unpack("<Q", said[:whole]))])


def check(path: Path, blocks: list[int], flushed: int, *, lazy: bool) -> None:
    """The image opens without repair and has what was flushed, or what came after.

    A write that was under way may be there in part, as on any disk: by whole sectors. Only lazy
    refcounts may be wrong, in an image that says so.
    """
    last = [0] * BLOCKS
    for number, block in enumerate(blocks[:flushed]):
        last[block] = number + 1
    with open_image(path, readonly=True) as image:
        assert isinstance(image, Qcow2Image)
        disk = image.read(0, image.size_bytes)
        report = image.check()
    assert lazy or not image.header.incompatible & Incompatible.DIRTY
    if not image.header.incompatible & Incompatible.DIRTY:
        assert report.corruptions == 0, report.messages
    for block in range(BLOCKS):
        for at in range(block * BLOCK, (block + 1) * BLOCK, SECTOR):
            (_, number) = struct.unpack_from("<QQ", disk, at)
            expected = sector(block, number) if number else bytes(SECTOR)
            assert disk[at : at + SECTOR] == expected, f"block {block}, byte {at % BLOCK}"
            assert number >= last[block], f"block {block} has write {number}, not {last[block]}"


@needs_qemu
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_writer_killed_at_random_moments_loses_nothing_it_flushed(
    seed: int, tmp_path: Path
) -> None:
    path, dice = tmp_path / "disk.qcow2", random.Random(seed)
    sizes = [65536, 4096, 512, 65536, 2 << 20]
    lazy = seed == 3
    create_image(path, BLOCKS * BLOCK, cluster_size=sizes[seed], lazy_refcounts=lazy)
    blocks, flushed = script(seed), 0
    for _ in range(KILLS):
        # What was not flushed is written again.
        flushed = killed_writer(path, blocks, flushed, dice.randrange(2), dice.random() * 0.02)
        check(path, blocks, flushed, lazy=lazy)
    assert flushed > 0
    if not lazy:
        found = subprocess.run(["qemu-img", "check", path], capture_output=True, check=False)
        assert found.returncode in (0, 3), found.stderr
    subprocess.run(["qemu-img", "check", "-r", "all", path], capture_output=True, check=False)
    subprocess.run(["qemu-img", "check", path], capture_output=True, check=True)

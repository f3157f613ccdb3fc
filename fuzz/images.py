"""Mutates disk images and opens, maps and reads them: `python -m fuzz.images --executions 1000000`.

Seeds are small images of qemu-img. A mutation changes a few bytes where the format keeps its
tables, sets whole fields to values that hurt, copies a piece elsewhere, or cuts the file.
Checksums are taken as right, so that what is behind them is reached. Anything but an `OstlerError`
of one line, an execution longer than `SECONDS_MAX` or memory above `GROWTH_KIB_MAX` is a finding:
the input is written to `build/fuzz/` and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast
from unittest.mock import patch

from ostler.block import create_image, open_image
from ostler.block.crypto.keys import pbkdf2
from ostler.block.formats.luks import LuksImage
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.formats.qcow2.recording import read_map
from ostler.block.formats.vdi import VdiImage
from ostler.block.formats.vhdx import VhdxImage
from ostler.block.formats.vmdk import VmdkImage
from ostler.block.formats.vpc import VpcImage
from ostler.block.image import Image, ImageFile, Opening
from ostler.block.source import ByteSource, MemorySource
from ostler.errors import DiskError, OstlerError

KIB, MIB = 1 << 10, 1 << 20
SECONDS_MAX = 2.0
"""Of this thread's time: others may use the processor as well."""
GROWTH_KIB_MAX = 256 * KIB
FINDINGS_MAX = 20
"""Of one target; then it ends."""
FINDINGS = Path(__file__).resolve().parents[1] / "build/fuzz"
HURTFUL = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x200, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE,
           0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 512, (1 << 64) - 1)  # fmt: skip


class Mutant:
    """A seed with patches over it, so that an execution copies no image."""

    name, readonly = "mutant", True

    def __init__(self, seed: bytes, size_bytes: int, patches: list[tuple[int, bytes]]) -> None:
        self.seed, self.size_bytes, self.patches = seed, size_bytes, patches

    def read(self, offset: int, length: int) -> bytes:
        """The seed's bytes with the patches."""
        end = min(offset + length, self.size_bytes)
        content = bytearray(self.seed[offset:end])
        for at, piece in self.patches:
            start, stop = max(at, offset), min(at + len(piece), end)
            if start < stop:
                content[start - offset : stop - offset] = piece[start - at : stop - at]
        return bytes(content)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Target:
    """A parser: how it is opened, the options of its seeds, and where its tables are."""

    open: Callable[[ByteSource], Image]
    format: str
    options: tuple[str, ...]
    tables: tuple[tuple[int, int], ...]
    """Offset and length of what is mutated most; a negative offset counts from the end."""
    words: tuple[bytes, ...] = ()
    """What a text format is made of."""


JSON_WORDS = (
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"0",
    b"-1",
    b"9" * 30,
    b"1e9",
    b'"x"',
)
FLAT_EXTENT = MemorySource(bytes(3 * MIB), "extent-flat.vmdk")
WORDS = (
    b"RW ", b"RDONLY ", b"ZERO", b"FLAT ", b"SPARSE ", b'"', b"\n", b"\0", b"=", b" 0", b"-1",
    b"9" * 20, b"4096", b"createType=", b"parentCID=", b'parentFileNameHint="x"\n', b"\xff\xfe",
    b'\nRW 2 FLAT "extent-flat.vmdk" 6142\n', b'\nRW 99 ZERO\n',
)  # fmt: skip


def _vmdk(source: ByteSource) -> VmdkImage:
    def beside(name: str) -> ByteSource:
        if name != FLAT_EXTENT.name:
            raise DiskError(f"{name}: no such disk image")
        return FLAT_EXTENT

    return VmdkImage(source, beside)


def _luks(source: ByteSource) -> LuksImage:
    return LuksImage(cast(ImageFile, source), Opening(readonly=True, secret=b"passphrase"))


def _luks_seeds() -> list[bytes]:
    """An image of each version, with as little hashing as they may have."""
    with TemporaryDirectory() as directory:
        one, two = Path(directory, "one"), Path(directory, "two")
        secret = b"passphrase"
        create_image(one, 64 * KIB, format="luks", secret=secret, iter_time=1, cipher_alg="aes-128")
        key_file = Path(directory, "secret")
        key_file.write_bytes(secret)
        with two.open("wb") as file:
            file.truncate(17 * MIB)
        quick = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-size", "256")
        command = ("cryptsetup", "-q", "--key-file", str(key_file), "luksFormat", "--type", "luks2")
        subprocess.run([*command, *quick, str(two)], check=True)
        return [one.read_bytes(), two.read_bytes()]


def _qcow2(source: ByteSource) -> Qcow2Image:
    # One seed is encrypted, and some mutants say that they are.
    how = Opening(readonly=True, backing=False, secret=b"passphrase")
    image = Qcow2Image(cast(ImageFile, source), how)
    image.check()
    return image


def _qcow2_seeds() -> list[bytes]:
    """Images with compressed clusters, snapshots, bitmaps and subclusters, of few bytes."""
    images = []
    with TemporaryDirectory() as directory:
        raw, path = Path(directory, "raw"), Path(directory, "disk")
        raw.write_bytes(random.Random(1).randbytes(8 * KIB) + b"text " * 4000 + bytes(64 * KIB))
        for options in ("cluster_size=512", "cluster_size=16k,extended_l2=on", "compat=0.10"):
            for packed in ([], ["-c"]):
                chosen = ["-f", "raw", "-O", "qcow2", "-o", options, *packed]
                subprocess.run(["qemu-img", "convert", *chosen, raw, path], check=True)
                subprocess.run(["qemu-img", "snapshot", "-c", "one", path], check=True)
                if "0.10" not in options:
                    subprocess.run(["qemu-img", "bitmap", "--add", path, "map"], check=True)
                images.append(path.read_bytes())
        secret = ["--object", "secret,id=s,data=passphrase"]
        chosen = ["-O", "qcow2", "-o", "cluster_size=512,encrypt.format=aes,encrypt.key-secret=s"]
        subprocess.run(["qemu-img", "convert", *secret, *chosen, raw, path], check=True)
        images.append(path.read_bytes())
    return images


def _bitmaps(source: ByteSource) -> Qcow2Image:
    image = Qcow2Image(cast(ImageFile, source), Opening(readonly=True, backing=False))
    for bitmap in image.bitmaps:
        map = read_map(image, bitmap)
        assert map.run_at(0, map.size_bytes)[1] > 0, "an empty run"
    return image


def _bitmap_seeds() -> list[bytes]:
    """Images whose bitmaps mark something, nothing, and all."""
    images = []
    with TemporaryDirectory() as directory:
        path = Path(directory, "disk")
        for cluster_bytes in (512, 4096):
            create_image(path, 256 * KIB, cluster_size=cluster_bytes)
            with open_image(path) as image:
                bitmaps = cast(Qcow2Image, image).record()
                for name, granularity in (("some", 512), ("none", 64 * KIB), ("all", 512)):
                    bitmaps.add(name, granularity, enabled=name != "none")
                image.write(10 * KIB, b"x" * 5000)
                bitmaps.disable("some")
                image.write(0, b"y" * 256 * KIB)
            images.append(path.read_bytes())
    return images


TARGETS = {
    "bitmaps": Target(_bitmaps, "bitmaps", (), ((0, 512), (0, 4096), (256 * KIB, 64 * KIB))),
    "qcow2": Target(_qcow2, "qcow2", (), ((0, 112), (0, 1024), (512, 4096), (16 * KIB, 64 * KIB))),
    "vdi": Target(VdiImage, "vdi", ("", "static=on"), ((64, 448), (512, 64))),
    "vpc": Target(VpcImage, "vpc", ("", "subformat=fixed"), ((0, 2048), (-512, 512))),
    "vhdx": Target(
        VhdxImage,
        "vhdx",
        ("block_size=1M", "subformat=fixed"),
        (
            (64 * KIB, 96), (128 * KIB, 96), (192 * KIB, 96), (256 * KIB, 96), (MIB, 8 * KIB),
            (2 * MIB, 256), (3 * MIB, 512), (3 * MIB + 64 * KIB, 64), (4 * MIB, 64),
        ),
    ),
    "vmdk": Target(
        _vmdk,
        "vmdk",
        ("", "subformat=streamOptimized", "zeroed_grain=on"),
        (
            (0, 80), (512, 700), (0x15 * 512, 16), (0x1A * 512, 2560), (0x26 * 512, 64),
            (-1536, 1536),
        ),
    ),
    "vmdk-descriptor": Target(
        _vmdk, "vmdk", ("subformat=monolithicFlat",), ((0, 280),), WORDS
    ),
    "luks": Target(_luks, "luks", (), ((0, 256), (0, 256), (4096, 900)), JSON_WORDS),
}  # fmt: skip


def seeds(target: Target) -> list[bytes]:
    """Images of this kind, with data and holes."""
    if target.format == "luks":
        return _luks_seeds()
    if target.format == "qcow2":
        return _qcow2_seeds()
    if target.format == "bitmaps":
        return _bitmap_seeds()
    with TemporaryDirectory() as directory:
        raw = Path(directory, "raw")
        raw.write_bytes(random.Random(1).randbytes(200 * KIB) + bytes(2 * MIB) + b"end" * 1000)
        with raw.open("ab") as file:
            file.truncate(3 * MIB)
        images = []
        for options in target.options:
            path = Path(directory, f"extent.{target.format}")
            chosen = ["-o", options] if options else []
            command = ["qemu-img", "convert", "-f", "raw", "-O", target.format, *chosen]
            subprocess.run([*command, str(raw), str(path)], check=True)
            images.append(path.read_bytes())
        return images


def mutant(dice: random.Random, seed: bytes, target: Target) -> Mutant:
    """A damaged copy of `seed`."""
    size = len(seed)
    if dice.random() < 0.05:
        size = dice.randrange(size)
    patches = [_patch(dice, seed, target) for _ in range(dice.choice((1, 1, 2, 3, 8)))]
    return Mutant(seed, size, patches)


def _patch(dice: random.Random, seed: bytes, target: Target) -> tuple[int, bytes]:
    start, length = dice.choice(target.tables)
    at = min((start % len(seed)) + dice.randrange(length), len(seed) - 1)
    kind = dice.random()
    if target.words and kind < 0.7:
        return at, dice.choice(target.words)
    if kind < 0.3:
        return at, bytes([seed[at] ^ 1 << dice.randrange(8)])
    if kind < 0.8:
        width, value = dice.choice((1, 2, 4, 4, 8, 8)), dice.choice(HURTFUL)
        field = ((value + dice.choice((0, 0, 0, -1, 1))) % (1 << 8 * width)).to_bytes(width)
        return at & -width, dice.choice((field, field[::-1], field[::-1]))
    if kind < 0.9:
        return at, dice.randbytes(dice.randrange(1, 9))
    source = dice.randrange(min(len(seed), 8 * MIB))
    return at, seed[source : source + dice.choice((4, 8, 64))]


def execute(target: Target, source: ByteSource) -> None:
    """What a user does with an image; an `OstlerError` of one line is a fair answer."""
    try:
        image = target.open(source)
        for extent in islice(image.extents(0, image.size_bytes), 64):
            assert extent.length > 0, "an empty extent"
        for offset in (0, 200 * KIB - 100, image.size_bytes - 3000):
            length = min(64 * KIB, image.size_bytes - offset)
            if offset >= 0 and length > 0:
                assert len(image.read(offset, length)) == length, "a short read"
        image.close()
    except OstlerError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error


def _pbkdf2_once(name: str, secret: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    return pbkdf2(name, secret, salt, min(iterations, 1000), length)


@contextmanager
def without_checksums() -> Iterator[None]:
    """Let mutants past the checksums."""
    with ExitStack() as patched:
        for module in ("vhdx", "vhdx_log"):
            name = f"ostler.block.formats.{module}.is_sealed"
            patched.enter_context(patch(name, lambda content: True))
        # LUKS2's seal, and hashing that takes a second where a header may ask for minutes.
        luks2 = patch("ostler.block.crypto.luks2.is_sealed", lambda area, name: True)
        patched.enter_context(luks2)
        for module in ("luks1", "luks2"):
            name = f"ostler.block.crypto.{module}.pbkdf2"
            patched.enter_context(patch(name, _pbkdf2_once))
        checksum = "ostler.block.formats.vpc.checksum_of"
        stored = lambda raw, at: int.from_bytes(raw[at : at + 4], "big")  # noqa: E731 - two words
        patched.enter_context(patch(checksum, stored))
        yield


def run(name: str, executions: int, seed: int) -> Iterator[tuple[Mutant, str]]:
    """Execute mutants of one target; each finding with what is wrong."""
    target, dice = TARGETS[name], random.Random(f"{name} {seed}")
    images = seeds(target)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with without_checksums():
        for _ in range(executions):
            damaged = mutant(dice, dice.choice(images), target)
            began = time.thread_time()
            try:
                execute(target, damaged)
            except Exception as error:
                yield damaged, f"{type(error).__name__}: {error}"
            if (took := time.thread_time() - began) > SECONDS_MAX:
                yield damaged, f"took {took:.1f} s"
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            if grown > GROWTH_KIB_MAX:
                before += grown
                yield damaged, f"memory grew by {grown >> 10} MiB"


def main() -> int:
    """Fuzz, print, keep findings."""
    parser = argparse.ArgumentParser(prog="fuzz.images", description=__doc__)
    parser.add_argument("--executions", type=int, default=20_000, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    found = 0
    for name in options.target or TARGETS:
        began = time.monotonic()
        findings = run(name, options.executions, options.seed)
        for damaged, what in islice(findings, FINDINGS_MAX):
            found += 1
            FINDINGS.mkdir(parents=True, exist_ok=True)
            path = FINDINGS / f"{name}-{found}"
            path.write_bytes(damaged.read(0, damaged.size_bytes))
            print(f"{path}: {what}")
        seconds = time.monotonic() - began
        print(f"{name}: {options.executions} executions in {seconds:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

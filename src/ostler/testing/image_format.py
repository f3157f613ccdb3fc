"""The contract of disk image formats as a check: what is registered is tested."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ostler.block.image import Extent, Image, create_image, open_image
from ostler.block.registry import find_format
from ostler.errors import OstlerError

SIZE = 3 << 20
ROUNDS = 60
DAMAGES = 40


def check_image_format(
    name: str,
    directory: Path,
    sample: Path | None = None,
    *,
    secret: bytes | None = None,
    **options: Any,
) -> None:
    """Hold the format `name` to the contract, with files made in `directory`.

    An encrypted one needs a `secret`; `options` are for its creation.

    A format that cannot be created needs a `sample`: a sound image of it, which is not changed.
    Raises `AssertionError` with what is wrong.
    """
    path = directory / f"contract.{name}"
    if find_format(name).load().prepare is not None:
        create_image(path, SIZE, format=name, **({"secret": secret} if secret else {}), **options)
        _check_new(name, path, secret)
        _check_writes(name, path, secret)
        _check_readonly(name, path, secret)
        sample = path
    assert sample is not None, f"{name}: give a sample, for it cannot be created"
    _check_reads(name, sample, secret)
    _check_damage(name, sample.read_bytes(), directory / f"damaged.{name}", secret)


def _check_new(name: str, path: Path, secret: bytes | None) -> None:
    with open_image(path, format=name, secret=secret) as image:
        assert image.format == name
        assert image.size_bytes == SIZE, f"{name}: created {SIZE} bytes, got {image.size_bytes}"
        if secret is not None:
            # What nobody has written to an encrypted disk reads as noise.
            image.write_zeroes(0, SIZE)
        assert image.read(0, SIZE) == bytes(SIZE), f"{name}: a new image does not read as zeroes"
    image.close()
    if name != "raw":
        with open_image(path, readonly=True, secret=secret) as image:
            assert image.format == name, f"{name}: probing says {image.format}"


def _check_writes(name: str, path: Path, secret: bytes | None) -> None:
    """Random writes, zeroes and reopening, against plain bytes."""
    dice, truth = random.Random(5), bytearray(SIZE)
    for _ in range(3):
        with open_image(path, format=name, secret=secret) as image:
            for _ in range(ROUNDS):
                _change(dice, image, truth)
            image.flush()
            assert image.read(0, SIZE) == truth, f"{name}: reads differ from what was written"
            _check_extents(image, truth)
        with open_image(path, format=name, readonly=True, secret=secret) as image:
            assert image.read(0, SIZE) == truth, f"{name}: differs after reopening"


def _change(dice: random.Random, image: Image, truth: bytearray) -> None:
    offset = dice.randrange(SIZE)
    length = min(dice.choice((1, 512, 4096, 70_000, 300_000)), SIZE - offset)
    if dice.random() < 0.7:
        data = dice.randbytes(length)
        image.write(offset, data)
    else:
        data = bytes(length)
        image.write_zeroes(offset, length, unmap=dice.random() < 0.5)
    truth[offset : offset + length] = data


def _check_extents(image: Image, truth: bytes | bytearray) -> None:
    position = 0
    for extent in _whole(image):
        assert extent.offset == position, f"{image.format}: extents leave a gap at {position}"
        assert extent.length > 0, f"{image.format}: an empty extent at {position}"
        if extent.zero:
            piece = truth[extent.offset : extent.end]
            assert not any(piece), f"{image.format}: extent at {position} is not zero"
        position = extent.end
    assert position == image.size_bytes, f"{image.format}: extents end at {position}"


def _whole(image: Image) -> Iterator[Extent]:
    return image.extents(0, image.size_bytes)


def _check_readonly(name: str, path: Path, secret: bytes | None) -> None:
    with open_image(path, format=name, readonly=True, secret=secret) as image:
        assert image.readonly
        for act in (
            lambda: image.write(0, b"x"),
            lambda: image.write_zeroes(0, 512),
            lambda: image.discard(0, 512),
        ):
            _must_refuse(act, f"{name}: a read-only image was changed")


def _check_reads(name: str, path: Path, secret: bytes | None) -> None:
    with open_image(path, format=name, readonly=True, secret=secret) as image:
        size = image.size_bytes
        whole = image.read(0, min(size, 64 << 20))
        dice = random.Random(7)
        for _ in range(ROUNDS):
            offset = dice.randrange(len(whole))
            length = min(dice.choice((1, 513, 65_537)), len(whole) - offset)
            assert image.read(offset, length) == whole[offset : offset + length]
        if size == len(whole):
            _check_extents(image, whole)
        for offset, length in ((size, 1), (0, size + 1), (-1, 1)):
            _must_refuse(lambda o=offset, n=length: image.read(o, n), f"{name}: read off the disk")


def _must_refuse(act: object, complaint: str) -> None:
    assert callable(act)
    try:
        act()
    except OstlerError as error:
        _is_one_line(error)
        return
    raise AssertionError(complaint)


def _check_damage(name: str, sound: bytes, path: Path, secret: bytes | None) -> None:
    """Truncated and scribbled-on images give an error of ours or some content, nothing else."""
    dice = random.Random(9)
    for number in range(DAMAGES):
        damaged = bytearray(sound)
        if number % 4 == 0:
            del damaged[dice.randrange(len(damaged)) :]
        else:
            reach = min(len(damaged), dice.choice((128, 4096, len(damaged))))
            for _ in range(dice.choice((1, 8))):
                damaged[dice.randrange(reach)] = dice.choice((0, 0xFF, dice.randrange(256)))
        path.write_bytes(damaged)
        try:
            with open_image(
                path, format=name, readonly=True, backing=False, secret=secret
            ) as image:
                image.read(0, min(image.size_bytes, SIZE))
        except OstlerError as error:
            _is_one_line(error)
    path.unlink()


def _is_one_line(error: OstlerError) -> None:
    assert "\n" not in str(error), f"an error of more than one line: {error}"

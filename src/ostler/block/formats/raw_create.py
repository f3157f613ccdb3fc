"""New raw images."""

from __future__ import annotations

from functools import partial
from typing import Literal

from ostler.block.choices import Choices
from ostler.block.image import ImageFile, ImageWriter


class Options(Choices):
    """`preallocation`: `falloc` reserves the space, `full` writes it."""

    preallocation: Literal["off", "falloc", "full"] = "off"


def prepare(name: str, size_bytes: int, options: Options) -> ImageWriter:
    """What makes a file a disk of zeroes."""
    return partial(_write, size_bytes=size_bytes, options=options)


def _write(file: ImageFile, *, size_bytes: int, options: Options) -> None:
    # A size that cannot be is told before anything is lost.
    file.truncate(size_bytes)
    file.truncate(0)
    file.truncate(size_bytes)
    if options.preallocation == "falloc":
        file.write_zeroes(0, size_bytes, unmap=False)
    elif options.preallocation == "full":
        zeroes = bytes(1 << 20)
        for offset in range(0, size_bytes, len(zeroes)):
            file.write(offset, zeroes[: size_bytes - offset])

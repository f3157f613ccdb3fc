"""New raw images."""

from __future__ import annotations

from typing import Literal

import msgspec

from ostler.block.image import ImageFile


class Options(msgspec.Struct, frozen=True):
    """`preallocation`: `falloc` reserves the space, `full` writes it."""

    preallocation: Literal["off", "falloc", "full"] = "off"


def create(file: ImageFile, size_bytes: int, options: Options) -> None:
    """A disk of zeroes."""
    file.truncate(size_bytes)
    if options.preallocation == "falloc":
        file.write_zeroes(0, size_bytes, unmap=False)
    elif options.preallocation == "full":
        zeroes = bytes(1 << 20)
        for offset in range(0, size_bytes, len(zeroes)):
            file.write(offset, zeroes[: size_bytes - offset])

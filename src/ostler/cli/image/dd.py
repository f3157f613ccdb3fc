"""`ostler image dd`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument, Option
from ostler.cli.image import options as opt
from ostler.errors import ConfigError

PIECE_BYTES = 1 << 20


def dd(
    operands: Annotated[
        list[str],
        Argument(metavar="if=FILE of=FILE [bs=N] [count=N] [skip=N]", help="As dd has them."),
    ],
    format: opt.Format = None,
    target_format: Annotated[
        str, Option("-O", "--target-format", metavar="FMT", help="The target's format.")
    ] = "raw",
    shared: opt.Shared = False,
    key_file: opt.KeyFile = None,
) -> int:
    """Copy a part of an image into a new one.

    Example: ostler image dd if=disk.qcow2 of=start.raw bs=1M count=1
    """
    given = _operands(operands)
    from ostler.block.image import create_image, open_image
    from ostler.block.target import Target

    block = opt.size_option(given.get("bs", "512"), "bs")
    skip = block * int(given.get("skip", "0"))
    missing = " and ".join(f"{name}=FILE" for name in ("if", "of") if name not in given)
    if missing:
        raise ConfigError(f"dd: {missing} is missing; give if=FILE to read and of=FILE to write")
    if block <= 0:
        raise ConfigError("dd: bs=0: nothing would be copied; a block has at least 1 byte")
    secret = opt.secret_of(key_file)
    with open_image(
        given["if"], format=format, readonly=True, lock=not shared, secret=secret
    ) as source:
        end = source.size_bytes
        if "count" in given:
            end = min(end, skip + block * int(given["count"]))
        size = max(0, end - skip)
        place = Target(given["of"])
        with place.begun():
            create_image(place.now, size + -size % 512, format=target_format)
            target = open_image(place.now, format=target_format, unsafe=True)
        with place.finished(lasting=False), target:
            for at in range(0, size, PIECE_BYTES):
                target.write(at, source.read(skip + at, min(PIECE_BYTES, size - at)))
    return 0


def _operands(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in ("if", "of", "bs", "count", "skip"):
            raise ConfigError(f"dd: {text!r} is none of if=, of=, bs=, count= and skip=")
        if name in ("count", "skip") and not value.isdecimal():
            raise ConfigError(f"dd: {text!r}: give a number of blocks")
        found[name] = value
    return found

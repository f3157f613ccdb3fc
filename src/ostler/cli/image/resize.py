"""`ostler image resize`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import ConfigError, DiskError


def resize(
    filename: Annotated[str, Argument(metavar="FILE", help="The image.")],
    size: Annotated[
        str, Argument(metavar="[+|-]SIZE", help="The new size, or by how much to change it.")
    ],
    format: opt.Format = None,
    shrink: Annotated[
        bool, Option("--shrink", help="Allow a smaller disk: what is cut off is lost.")
    ] = False,
    preallocation: Annotated[
        str, Option("--preallocation", metavar="HOW", help="off, metadata, falloc or full.")
    ] = "off",
    quiet: opt.Quiet = False,
    key_file: opt.KeyFile = None,
) -> int:
    """Change the size of a disk. The guest's partitions stay as they are.

    Example: ostler image resize disk.qcow2 +10G
    """
    from ostler.block.image import Resizable, open_image

    with open_image(filename, format=format, secret=opt.secret_of(key_file)) as image:
        if not isinstance(image, Resizable):
            raise DiskError(
                f"{filename}: images of format {image.format} keep their size; convert it"
            )
        old, new = image.size_bytes, _wanted(size, image.size_bytes)
        if new < old and not shrink:
            raise DiskError(
                f"{filename}: {new} bytes are less than the {old} there are; add --shrink to lose"
                " what is cut off"
            )
        image.resize(new)
        if preallocation != "off" and new > old:
            from ostler.block.preallocate import preallocate

            preallocate(image, old, new - old, preallocation)
    if not quiet:
        echo("Image resized.")
    return 0


def _wanted(text: str, now: int) -> int:
    signs = {"+": 1, "-": -1, opt.MINUS: -1}
    sign = signs.get(text[:1])
    number = opt.size_option(text if sign is None else text[1:], "size")
    wanted = number if sign is None else now + sign * number
    if wanted <= 0:
        raise ConfigError(f"size {text}: the disk would have {wanted} bytes; give more")
    return wanted + -wanted % 512

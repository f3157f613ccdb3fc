"""`ostler image measure`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.cli.image.convert import snapshot_of
from ostler.errors import ConfigError


def measure(
    filename: Annotated[
        str | None, Argument(metavar="[FILE]", help="The image that would be converted.")
    ] = None,
    format: opt.Format = None,
    target_format: Annotated[
        str, Option("-O", "--target-format", metavar="FMT", help="The target's format.")
    ] = "raw",
    options: opt.ImageOptions = None,
    objects: opt.Objects = None,
    size: Annotated[
        str | None, Option("--size", metavar="SIZE", help="Of an empty disk, without FILE.")
    ] = None,
    snapshot: Annotated[
        str | None, Option("-l", "--snapshot", metavar="NAME", help="Of this internal snapshot.")
    ] = None,
    output: opt.Output = "human",
    shared: opt.Shared = False,
    key_file: opt.KeyFile = None,
) -> int:
    """Say how much space an image will take.

    Example: ostler image measure -O qcow2 disk.raw
    """
    if opt.wants_help(options):
        return opt.show_options("qcow2")
    if (filename is None) == (size is None):
        raise ConfigError("measure: give an image, or --size")
    as_json = opt.is_json(output)
    from ostler.block.formats.qcow2 import FORMAT
    from ostler.block.image import open_image
    from ostler.block.measure import bitmaps_bytes, measure

    given = opt.creation_options(filename or "measure", "qcow2", options, objects)
    chosen = FORMAT.parse_options(given)
    with ExitStack() as stack:
        image, size_bytes = None, 0
        if filename is not None:
            secret = opt.secret_of(key_file)
            opened = open_image(
                filename, format=format, readonly=True, lock=not shared, secret=secret
            )
            image = stack.enter_context(opened)
            if snapshot is not None:
                image = stack.enter_context(snapshot_of(image, snapshot))
            size_bytes = image.size_bytes
        elif size is not None:
            size_bytes = opt.size_option(size, "--size")
        required, full = measure(image, size_bytes, target_format, chosen)
        bitmaps = bitmaps_bytes(image, target_format, chosen)
    facts = {"required": required, "fully-allocated": full}
    if bitmaps is not None:
        facts["bitmaps"] = bitmaps
    if as_json:
        opt.print_json(facts)
    else:
        names = {"required": "required", "fully-allocated": "fully allocated", "bitmaps": "bitmaps"}
        echo("\n".join(f"{names[name]} size: {size}" for name, size in facts.items()))
    return 0

"""`ostler image amend`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument
from ostler.cli.image import options as opt
from ostler.errors import ConfigError, DiskError


def amend(
    filename: Annotated[str | None, Argument(metavar="FILE", help="The image.")] = None,
    options: opt.ImageOptions = None,
    format: opt.Format = None,
    progress: opt.Progress = False,
    quiet: opt.Quiet = False,
    cache: opt.Cache = "writeback",
    key_file: opt.KeyFile = None,
) -> int:
    """Change what was chosen when a qcow2 image was made.

    Example: ostler image amend -o compat=1.1,lazy_refcounts=on disk.qcow2
    """
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.formats.qcow2.amend import AmendOptions, amend
    from ostler.block.image import open_image
    from ostler.block.registry import parse_options

    if opt.wants_help(options):
        return opt.show_fields("qcow2", AmendOptions)
    if filename is None:
        raise ConfigError("amend: FILE is missing; give the image to change")
    given = opt.parse_image_options(options)
    if not given:
        raise ConfigError("amend: say what to change, -o compat=1.1 say; -o help lists what can be")
    if {"backing_file", "backing_fmt"} & given.keys():
        raise ConfigError(f"{filename}: to change what is behind it run: ostler image rebase")
    chosen = parse_options(AmendOptions, given)
    unsafe, secret = opt.is_unsafe(cache), opt.secret_of(key_file)
    with open_image(filename, format=format, unsafe=unsafe, secret=secret) as image:
        if not isinstance(image, Qcow2Image):
            raise DiskError(f"{filename}: images of format {image.format} have nothing to amend")
        amend(image, chosen)
    return 0

"""`ostler image commit`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import DiskError


def commit(
    filename: Annotated[str, Argument(metavar="FILE", help="The overlay.")],
    format: opt.Format = None,
    base: Annotated[
        str | None,
        Option("-b", metavar="FILE", help="The image of the chain to write to; else the next."),
    ] = None,
    drop: Annotated[bool, Option("-d", help="Do not empty the overlay afterwards.")] = False,
    progress: opt.Progress = False,
    quiet: opt.Quiet = False,
    rate: Annotated[str, Option("-r", metavar="RATE", help="Bytes a second at most.")] = "0",
    cache: opt.Cache = "writeback",
    key_file: opt.KeyFile = None,
) -> int:
    """Write what an overlay holds into its backing file, and empty it.

    Example: ostler image commit overlay.qcow2
    """
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.image import open_image
    from ostler.block.jobs.commit import commit

    unsafe, secret = opt.is_unsafe(cache), opt.secret_of(key_file)
    with open_image(filename, format=format, unsafe=unsafe, secret=secret) as image:
        if not isinstance(image, Qcow2Image):
            raise DiskError(f"{filename}: images of format {image.format} have no backing file")
        job = commit(image, base, drop=drop, limit_bytes_s=opt.size_option(rate, "-r"))
        opt.finish(job, progress=progress)
    if not quiet:
        echo("Image committed.")
    return 0

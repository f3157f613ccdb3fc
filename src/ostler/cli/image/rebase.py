"""`ostler image rebase`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument, Option
from ostler.cli.image import options as opt
from ostler.errors import DiskError


def rebase(
    filename: Annotated[str, Argument(metavar="FILE", help="The overlay.")],
    backing: Annotated[
        str, Option("-b", metavar="FILE", help="The new backing file; empty for none.")
    ],
    backing_format: Annotated[
        str | None, Option("-F", metavar="FMT", help="The format of the backing file.")
    ] = None,
    format: opt.Format = None,
    unsafe: Annotated[
        bool,
        Option("-u", help="Only write the name: the old and new backing file are alike."),
    ] = False,
    progress: opt.Progress = False,
    quiet: opt.Quiet = False,
    shared: opt.Shared = False,
    cache: opt.Cache = "writeback",
    source_cache: opt.SourceCache = "writeback",
    key_file: opt.KeyFile = None,
) -> int:
    """Give an overlay another backing file, or none, without changing what it reads as.

    Example: ostler image rebase -b new.qcow2 -F qcow2 overlay.qcow2
    """
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.image import open_image
    from ostler.block.jobs.rebase import rebase, set_backing

    opt.is_unsafe(source_cache, "-T")
    waits_not = opt.is_unsafe(cache)
    with open_image(
        filename,
        format=format,
        backing=not unsafe,
        lock=not shared,
        unsafe=waits_not,
        secret=opt.secret_of(key_file),
    ) as image:
        if not isinstance(image, Qcow2Image):
            raise DiskError(f"{filename}: images of format {image.format} have no backing file")
        if unsafe:
            set_backing(image, backing or None, backing_format)
        else:
            opt.finish(rebase(image, backing or None, backing_format), progress=progress)
    return 0

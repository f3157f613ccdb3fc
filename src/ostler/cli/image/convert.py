"""`ostler image convert`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import ConfigError


def convert(
    filenames: Annotated[
        list[str] | None,
        Argument(metavar="FILE... TARGET", help="What to read, then the target."),
    ] = None,
    format: opt.Format = None,
    target_format: Annotated[
        str, Option("-O", "--target-format", metavar="FMT", help="The target's format.")
    ] = "raw",
    options: opt.ImageOptions = None,
    objects: opt.Objects = None,
    key_file: opt.KeyFile = None,
    compress: Annotated[bool, Option("-c", help="Keep the data compressed (qcow2).")] = False,
    backing: Annotated[
        str | None, Option("-B", metavar="FILE", help="The target is an overlay over this.")
    ] = None,
    backing_format: Annotated[
        str | None, Option("-F", metavar="FMT", help="The format of the backing file.")
    ] = None,
    sparse: Annotated[
        str, Option("-S", metavar="SIZE", help="Zeroes to leave out; 0 writes everything.")
    ] = "4k",
    snapshot: Annotated[
        str | None,
        Option("-l", "--snapshot", metavar="NAME", help="Read this internal snapshot."),
    ] = None,
    no_create: Annotated[bool, Option("-n", help="Do not make the target: it is there.")] = False,
    target_is_zero: Annotated[
        bool, Option("--target-is-zero", help="With -n: the target reads as zeroes.")
    ] = False,
    parallel: Annotated[
        int,
        Option("-m", metavar="N", help="How many threads work on it; 0 is as many as fit."),
    ] = 0,
    salvage: Annotated[
        bool,
        Option("--salvage", help="What cannot be read is zero in the target; it is told."),
    ] = False,
    bitmaps: Annotated[
        bool, Option("--bitmaps", help="Copy the persistent bitmaps, too (qcow2).")
    ] = False,
    skip_broken: Annotated[
        bool,
        Option("--skip-broken-bitmaps", help="Leave out bitmaps that were not saved."),
    ] = False,
    unordered: Annotated[bool, Option("-W", help="Out of order: always the case.")] = False,
    rate: Annotated[
        str, Option("-r", metavar="RATE", help="At most so many bytes a second: 10M.")
    ] = "0",
    progress: opt.Progress = False,
    quiet: opt.Quiet = False,
    shared: opt.Shared = False,
    cache: opt.Cache = "unsafe",
    source_cache: opt.SourceCache = "writeback",
) -> int:
    """Write one image, or several after each other, into another format.

    Example: ostler image convert -O qcow2 -c disk.raw disk.qcow2
    """
    if opt.wants_help(options):
        return opt.show_options(target_format)
    if skip_broken and not bitmaps:
        raise ConfigError("--skip-broken-bitmaps: is for --bitmaps; add that")
    if parallel < 0:
        raise ConfigError(f"-m {parallel}: less than no thread; leave it out for as many as fit")
    if filenames is None or len(filenames) < 2:
        raise ConfigError("convert: give what to read, and the target")
    *names, target = filenames
    unsafe, direct = opt.cache_mode(cache)
    _, reads_direct = opt.cache_mode(source_cache, "-T")
    from ostler.block.image import open_image
    from ostler.block.jobs.convert import convert
    from ostler.block.jobs.job import THREADS

    given = opt.creation_options(target, target_format, options, objects)
    secret = opt.secret_of(key_file)
    if backing is not None:
        given["backing_file"] = backing
    if backing_format is not None:
        given["backing_fmt"] = backing_format
    with ExitStack() as stack:
        sources = [
            stack.enter_context(
                open_image(
                    name,
                    format=format,
                    readonly=True,
                    lock=not shared,
                    secret=secret,
                    direct=reads_direct,
                )
            )
            for name in names
        ]
        if snapshot is not None:
            sources = [stack.enter_context(snapshot_of(source, snapshot)) for source in sources]
        job = convert(
            sources,
            target,
            format=target_format,
            options=given,
            compress=compress,
            sparse_bytes=opt.size_option(sparse, "-S"),
            threads=parallel or THREADS,
            limit_bytes_s=opt.size_option(rate, "-r"),
            create=not no_create,
            target_is_zero=target_is_zero,
            unsafe=unsafe,
            direct=direct,
            salvage=salvage,
            bitmaps="sound" if bitmaps and skip_broken else "all" if bitmaps else None,
        )
        lost = opt.finish(job, progress=progress and not quiet)
    if lost and not quiet:
        echo(f"ostler: {target}: {lost} bytes could not be read; zero in it", err=True)
    return 0


def snapshot_of(image: Any, wanted: str) -> Any:
    """The disk as an internal snapshot of it has it."""
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.errors import DiskError

    if not isinstance(image, Qcow2Image):
        raise DiskError(f"{image.name}: images of format {image.format} have no internal snapshots")
    name = wanted
    for part in wanted.split(","):
        if part.startswith(("snapshot.id=", "snapshot.name=")):
            name = part.split("=", 1)[1]
    return image.view_snapshot(name)

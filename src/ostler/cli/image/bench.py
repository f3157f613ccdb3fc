"""`ostler image bench`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import ConfigError


def bench(
    filename: Annotated[str, Argument(metavar="FILE", help="The image.")],
    count: Annotated[int, Option("-c", metavar="N", help="How many requests.")] = 75000,
    depth: Annotated[int, Option("-d", metavar="N", help="How many at once.")] = 64,
    format: opt.Format = None,
    size: Annotated[str, Option("-s", metavar="SIZE", help="Of a request.")] = "4k",
    step: Annotated[str | None, Option("-S", metavar="SIZE", help="From one to the next.")] = None,
    offset: Annotated[str, Option("-o", metavar="OFFSET", help="Of the first.")] = "0",
    write: Annotated[bool, Option("-w", help="Write: this destroys what is there.")] = False,
    pattern: Annotated[int, Option("--pattern", help="The byte that is written.")] = 0,
    flush: Annotated[
        int, Option("--flush-interval", metavar="N", help="Flush after so many requests.")
    ] = 0,
    quiet: opt.Quiet = False,
    shared: opt.Shared = False,
    cache: opt.Cache = "writeback",
    key_file: opt.KeyFile = None,
) -> int:
    """Time many requests of one size. Example: ostler image bench -w -c 16000 scratch.qcow2"""
    from ostler.block.bench import bench
    from ostler.block.image import open_image

    length = opt.size_option(size, "-s")
    if count <= 0 or depth <= 0 or length <= 0 or not 0 <= pattern <= 255:
        raise ConfigError("bench: -c, -d and -s are at least 1, --pattern is 0 to 255")
    apart = length if step is None else opt.size_option(step, "-S")
    (unsafe, direct), secret = opt.cache_mode(cache), opt.secret_of(key_file)
    if cache in ("writethrough", "directsync"):
        flush = 1
    with open_image(
        filename,
        format=format,
        readonly=not write,
        lock=not shared,
        unsafe=unsafe,
        secret=secret,
        direct=direct,
    ) as image:
        if not quiet:
            kind = "write" if write else "read"
            echo(f"Sending {count} {kind} requests, {length} bytes each, {depth} in parallel")
        seconds = bench(
            image,
            count=count,
            length=length,
            offset=opt.size_option(offset, "-o"),
            step=apart,
            pattern=pattern if write else None,
            flush_every=flush,
            depth=depth,
        )
    if not quiet:
        echo(f"Run completed in {seconds:.3f} seconds.")
    return 0

"""`ostler image compare`."""

from __future__ import annotations

from typing import Annotated

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import OstlerError

SAME, DIFFERENT, FAILED = 0, 1, 2


def compare(
    one: Annotated[str, Argument(metavar="FILE1", help="The first image.")],
    other: Annotated[str, Argument(metavar="FILE2", help="The second image.")],
    format: opt.Format = None,
    other_format: Annotated[
        str | None, Option("-F", metavar="FMT", help="The format of the second image.")
    ] = None,
    strict: Annotated[
        bool,
        Option("-s", help="Different sizes are a difference, even if only zeroes follow."),
    ] = False,
    progress: opt.Progress = False,
    quiet: opt.Quiet = False,
    shared: opt.Shared = False,
    source_cache: opt.SourceCache = "writeback",
    key_file: opt.KeyFile = None,
) -> int:
    """Tell whether two images read the same.

    Exit code: 0 they do, 1 they do not, 2 or more something failed.
    Example: ostler image compare a.qcow2 b.raw
    """
    from ostler.block.image import Opening, open_with
    from ostler.block.jobs.compare import compare

    _, direct = opt.cache_mode(source_cache, "-T")
    secret = opt.secret_of(key_file)
    how = Opening(readonly=True, lock=not shared, secret=secret, direct=direct)
    with (
        open_with(one, format, how) as first,
        open_with(other, other_format, how) as second,
    ):
        if first.size_bytes != second.size_bytes:
            if strict:
                _say("Strict mode: Image size mismatch!", quiet)
                return DIFFERENT
            _say("Warning: Image size mismatch!", quiet)
        try:
            at = opt.finish(compare(first, second), progress=progress and not quiet)
        except OstlerError as error:
            echo(f"ostler: {error}", err=True)
            return FAILED + 1
    if at is None:
        _say("Images are identical.", quiet)
        return SAME
    _say(f"Content mismatch at offset {at}!", quiet)
    return DIFFERENT


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        echo(text)

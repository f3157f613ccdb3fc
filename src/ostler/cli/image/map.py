"""`ostler image map`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt

if TYPE_CHECKING:
    from ostler.block.chain import Mapped


def map_image(
    filename: Annotated[str, Argument(metavar="FILE", help="The image.")],
    format: opt.Format = None,
    output: opt.Output = "human",
    start: Annotated[
        str, Option("--start-offset", "-s", metavar="OFFSET", help="Where to begin.")
    ] = "0",
    length: Annotated[
        str | None, Option("--max-length", "-l", metavar="LENGTH", help="How much to show.")
    ] = None,
    shared: opt.Shared = False,
    key_file: opt.KeyFile = None,
) -> int:
    """Show where an image and those behind it keep their data.

    Example: ostler image map --output json disk.qcow2
    """
    from ostler.block.chain import map_chain, map_text
    from ostler.block.image import open_image

    as_json = opt.is_json(output)
    wanted = None if length is None else opt.size_option(length, "--max-length")
    secret = opt.secret_of(key_file)
    with open_image(
        filename, format=format, readonly=True, lock=not shared, secret=secret
    ) as image:
        offset = opt.size_option(start, "--start-offset")
        if as_json and (text := map_text(image, offset, wanted)) is not None:
            echo(text)
            return 0
        runs = map_chain(image, offset, wanted)
        if as_json:
            _print_json(runs)
        else:
            return _print_table(filename, runs)
    return 0


@cache
def _kind(depth: int, present: bool, zero: bool, data: bool, compressed: bool) -> str:
    """The middle of a line; there are few of them."""
    facts = {"present": present, "zero": zero, "data": data, "compressed": compressed}
    return f'"depth": {depth}, ' + ", ".join(
        f'"{name}": {str(fact).lower()}' for name, fact in facts.items()
    )


def _line(run: Mapped) -> str:
    start, length, *kind, offset, _ = run
    place = "" if offset is None else f', "offset": {offset}'
    return f'{{ "start": {start}, "length": {length}, {_kind(*kind)}{place}}}'


def _print_json(runs: Any) -> None:
    echo("[" + ",\n".join(map(_line, runs)) + "]")


def _print_table(filename: str, runs: Any) -> int:
    """The runs as the file has them; like qemu-img it ends with 1 at one that is kept otherwise."""
    echo(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File")
    for run in runs:
        if not run.data or run.zero:
            continue
        if run.offset is None:
            echo(
                f"ostler: {filename}: the table cannot show compressed or encrypted clusters, of"
                f" {run.name} at {run.start:#x} say; give --output json",
                err=True,
            )
            return 1
        places = (
            f"{number:#x}" if number else "0" for number in (run.start, run.length, run.offset)
        )
        echo("".join(f"{place:<16}" for place in places) + run.name)
    return 0

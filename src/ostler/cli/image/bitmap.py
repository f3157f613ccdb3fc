"""`ostler image bitmap`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostler.cli.image import options as opt
from ostler.errors import ConfigError, DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.recording import Recording

ACTIONS = "ostler.image.bitmap.actions"
"""Where the context keeps the actions in the order of the command line."""


def _note(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    """Remember an action; they are made in the order in which they are given."""
    actions: list[tuple[str, str | None]] = context.meta.setdefault(ACTIONS, [])
    if isinstance(value, list | tuple):
        actions += [("merge", source) for source in value]
    elif value:
        actions.append((str(parameter.name), None))
    return value


def bitmap(
    context: typer.Context,
    filename: Annotated[str, typer.Argument(metavar="FILE", help="The image.")],
    name: Annotated[str, typer.Argument(metavar="BITMAP", help="The bitmap.")],
    add: Annotated[bool, typer.Option("--add", callback=_note, help="Make it.")] = False,
    remove: Annotated[bool, typer.Option("--remove", callback=_note, help="Forget it.")] = False,
    clear: Annotated[
        bool, typer.Option("--clear", callback=_note, help="Nothing was written.")
    ] = False,
    enable: Annotated[
        bool, typer.Option("--enable", callback=_note, help="Record what is written.")
    ] = False,
    disable: Annotated[
        bool, typer.Option("--disable", callback=_note, help="Record no more.")
    ] = False,
    merge: Annotated[
        list[str] | None,
        typer.Option(
            "--merge", metavar="SOURCE", callback=_note, help="Add what another bitmap has."
        ),
    ] = None,
    source_file: Annotated[
        str | None, typer.Option("-b", metavar="FILE", help="The image that has SOURCE.")
    ] = None,
    source_format: Annotated[
        str | None, typer.Option("-F", metavar="FMT", help="The format of that image.")
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option("-g", metavar="SIZE", help="With --add: what a bit stands for; 64k."),
    ] = None,
    format: opt.Format = None,
    key_file: opt.KeyFile = None,
) -> int:
    """Change a persistent bitmap, which records what is written to a disk.

    Actions are made in the order in which they are given; what was done before one fails stays.
    Example: ostler image bitmap --add --disable disk.qcow2 since-monday
    """
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.image import open_image

    actions: list[tuple[str, str | None]] = context.meta.get(ACTIONS, [])
    if not actions:
        raise ConfigError("bitmap: give --add, --remove, --clear, --enable, --disable or --merge")
    if granularity is not None and not add:
        raise ConfigError(f"-g {granularity}: is for --add; leave it out")
    if source_file is not None and not merge:
        raise ConfigError(f"-b {source_file}: is for --merge; leave it out")
    grain = None if granularity is None else opt.size_option(granularity, "-g")
    secret = opt.secret_of(key_file)
    with open_image(filename, format=format, backing=False, secret=secret) as image:
        if not isinstance(image, Qcow2Image):
            raise DiskError(f"{filename}: images of format {image.format} have no bitmaps")
        recording = image.record()
        for action, source in actions:
            match action:
                case "add":
                    recording.add(name, grain)
                case "merge":
                    assert source is not None
                    _merge(recording, name, source, source_file, source_format, secret)
                case _:
                    getattr(recording, action)(name)
    return 0


def _merge(
    here: Recording,
    name: str,
    source: str,
    filename: str | None,
    format: str | None,
    secret: bytes | None,
) -> None:
    """Merge the bitmap called `source`, of this image or another."""
    if filename is None:
        here.merge(name, here.usable(source)[1])
        return
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.formats.qcow2.recording import find_map
    from ostler.block.image import open_image

    with open_image(filename, format=format, readonly=True, backing=False, secret=secret) as image:
        if not isinstance(image, Qcow2Image):
            raise DiskError(f"{filename}: images of format {image.format} have no bitmaps")
        here.merge(name, find_map(image, source))

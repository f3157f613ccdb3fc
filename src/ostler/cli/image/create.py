"""`ostler image create`."""

from __future__ import annotations

from typing import Annotated, Any

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import ConfigError


def create(
    filename: Annotated[str | None, Argument(metavar="FILE", help="Where the image goes.")] = None,
    size: Annotated[
        str | None,
        Argument(metavar="[SIZE]", help="Of the disk: 10G. With -b that of the backing file."),
    ] = None,
    format: Annotated[
        str, Option("-f", "--format", metavar="FMT", help="The format of the new image.")
    ] = "qcow2",
    backing: Annotated[
        str | None, Option("-b", metavar="FILE", help="Make an overlay over this image.")
    ] = None,
    backing_format: Annotated[
        str | None, Option("-F", metavar="FMT", help="The format of the backing file.")
    ] = None,
    unsafe: Annotated[
        bool, Option("-u", help="Do not look at the backing file; SIZE is needed.")
    ] = False,
    options: opt.ImageOptions = None,
    objects: opt.Objects = None,
    quiet: opt.Quiet = False,
) -> int:
    """Make a disk image; qcow2 unless told otherwise.

    A file that exists is replaced, as qemu-img does it, but not while a program uses it.
    Example: ostler image create disk.qcow2 20G
    """
    if opt.wants_help(options):
        return opt.show_options(format)
    if filename is None:
        raise ConfigError("create: FILE is missing; give where the image goes, and its size")
    from ostler.block.image import create_image

    given = opt.creation_options(filename, format, options, objects)
    size = str(given.pop("size", size) or "") or None
    for name, value in (("backing_file", backing), ("backing_fmt", backing_format)):
        if value is not None:
            given[name] = value
    size_bytes = None if size is None else opt.size_option(size, "size")
    if "backing_file" in given and not unsafe:
        size_bytes = _look_behind(filename, given, size_bytes)
    if size_bytes is None:
        raise ConfigError(f"{filename}: how large? Add a size, 10G say")
    create_image(filename, size_bytes, format=format, **given)
    if not quiet:
        shown = " ".join(f"{name}={value}" for name, value in given.items() if name != "secret")
        echo(f"Formatting '{filename}', fmt={format} size={size_bytes} {shown}".rstrip())
    return 0


def _look_behind(filename: str, given: dict[str, Any], size_bytes: int | None) -> int:
    """The backing file's size where none is given; its format goes into the options."""
    from ostler.block.chain import resolve
    from ostler.block.image import Opening, open_with

    format = given.get("backing_fmt")
    path = resolve(str(given["backing_file"]), filename)
    how = Opening(readonly=True, keyless=True)
    with open_with(path, None if format is None else str(format), how) as image:
        given["backing_fmt"] = image.format
        return image.size_bytes if size_bytes is None else size_bytes

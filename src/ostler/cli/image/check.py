"""`ostler image check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import ConfigError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.check import CheckResult

SOUND, FAILED, CORRUPT, LEAKS, UNSUPPORTED = 0, 1, 2, 3, 63


def check(
    filename: Annotated[str, Argument(metavar="FILE", help="The image.")],
    format: opt.Format = None,
    output: opt.Output = "human",
    repair: Annotated[
        str | None,
        Option("-r", "--repair", metavar="WHAT", help="Repair `leaks`, or `all` damage."),
    ] = None,
    quiet: opt.Quiet = False,
    shared: opt.Shared = False,
    source_cache: opt.SourceCache = "writeback",
    key_file: opt.KeyFile = None,
) -> int:
    """Look for damage in an image, and repair it.

    Exit code: 0 sound, 1 the check could not be made, 2 damaged, 3 space is lost and nothing else
    is wrong, 63 the format cannot be checked. Example: ostler image check -r all disk.qcow2
    """
    from ostler.block.formats.qcow2 import Qcow2Image
    from ostler.block.image import open_image
    from ostler.errors import OstlerError

    opt.is_unsafe(source_cache, "-T")
    as_json = opt.is_json(output)
    if repair not in (None, "leaks", "all"):
        raise ConfigError(f"-r {repair}: give leaks or all")
    try:
        image = open_image(
            filename,
            format=format,
            readonly=repair is None,
            backing=False,
            lock=not shared,
            repairing=repair is not None,
            secret=opt.secret_of(key_file),
        )
    except OstlerError as error:
        echo(f"ostler: {error}", err=True)
        return FAILED
    with image:
        if not isinstance(image, Qcow2Image):
            echo(f"ostler: {filename}: images of format {image.format} have no checks", err=True)
            return UNSUPPORTED
        result = image.check(repair)
    _show(filename, result, as_json, quiet)
    return _code(result)


def _code(result: CheckResult) -> int:
    if result.check_errors:
        return FAILED
    if result.corruptions:
        return CORRUPT
    return LEAKS if result.leaks else SOUND


def _show(filename: str, result: CheckResult, as_json: bool, quiet: bool) -> None:
    if as_json:
        opt.print_json(_facts(filename, result))
    elif not quiet:
        echo(_human(result))


def _facts(filename: str, result: CheckResult) -> dict[str, Any]:
    always = {"image-end-offset", "total-clusters", "check-errors"}
    facts: dict[str, Any] = {
        "image-end-offset": result.image_end_offset,
        "total-clusters": result.total_clusters,
        "check-errors": result.check_errors,
        "allocated-clusters": result.allocated_clusters,
        "fragmented-clusters": result.fragmented_clusters,
        "compressed-clusters": result.compressed_clusters,
        "leaks": result.leaks,
        "leaks-fixed": result.leaks_fixed,
        "corruptions": result.corruptions,
        "corruptions-fixed": result.corruptions_fixed,
    }
    kept = {name: value for name, value in facts.items() if value or name in always}
    return kept | {"filename": filename, "format": "qcow2"}


def _human(result: CheckResult) -> str:
    lines = list(result.messages)
    fixed = result.leaks_fixed, result.corruptions_fixed
    if any(fixed):
        lines.append(
            "The following inconsistencies were found and repaired:\n\n"
            f"    {fixed[0]} leaked clusters\n    {fixed[1]} corruptions\n"
        )
    if result.is_sound:
        lines.append("No errors were found on the image.")
    if result.corruptions:
        lines.append(f"\n{result.corruptions} errors were found on the image.")
        lines.append("Data may be corrupted, or further writes to the image may corrupt it.")
    if result.leaks:
        lines.append(f"\n{result.leaks} leaked clusters were found on the image.")
        lines.append("This means waste of disk space, but no harm to data.")
    if result.total_clusters and result.allocated_clusters:
        lines.append(_shares(result))
    lines.append(f"Image end offset: {result.image_end_offset}")
    return "\n".join(lines)


def _shares(result: CheckResult) -> str:
    allocated, total = result.allocated_clusters, result.total_clusters
    return (
        f"{allocated}/{total} = {100 * allocated / total:.2f}% allocated,"
        f" {100 * result.fragmented_clusters / allocated:.2f}% fragmented,"
        f" {100 * result.compressed_clusters / allocated:.2f}% compressed clusters"
    )

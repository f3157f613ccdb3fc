"""What the verbs share: options, sizes as QEMU writes them, progress."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from ostler.cli.declare import Option, echo
from ostler.config.options import split_options
from ostler.config.size import parse_size
from ostler.errors import ConfigError, OstlerError

if TYPE_CHECKING:
    from ostler.block.jobs import Job

T = TypeVar("T")

Format = Annotated[
    str | None,
    Option("-f", "--format", metavar="FMT", help="The image's format; guessed if left out."),
]
Output = Annotated[str, Option("--output", metavar="HOW", help="human (for people) or json.")]
Quiet = Annotated[bool, Option("-q", "--quiet", help="Print nothing but errors.")]
Shared = Annotated[
    bool,
    Option(
        "-U", "--force-share", help="Read even while another program writes: may be inconsistent."
    ),
]
KeyFile = Annotated[
    str | None,
    Option(
        "--key-file",
        metavar="PATH",
        help="An encrypted image's passphrase: the whole content of this file.",
    ),
]
Objects = Annotated[
    list[str] | None,
    Option(
        "--object",
        metavar="secret,id=NAME,file=PATH",
        help="A passphrase by name, for -o key_secret=NAME.",
    ),
]
Progress = Annotated[bool, Option("-p", "--progress", help="Show how far it is.")]
ImageOptions = Annotated[
    list[str] | None,
    Option("-o", metavar="NAME=VALUE,...", help="Options of the format; `-o help` lists them."),
]
Cache = Annotated[
    str,
    Option(
        "-t",
        "--cache",
        metavar="MODE",
        help="writeback, writethrough, or unsafe: the host's disk is not waited for; convert and"
        " bench also none and directsync: around the host's page cache.",
    ),
]
SourceCache = Annotated[
    str,
    Option("-T", "--source-cache", metavar="MODE", help="As -t: none reads around the page cache."),
]


FRACTION = r"([0-9]*\.[0-9]+)([kmgt])(?:ib?|b)?"
MINUS = "\N{MINUS SIGN}"
"""Stands for the minus of a number until it is read as one."""


def is_unsafe(cache: str, flag: str = "-t") -> bool:
    """Whether a cache mode does not wait for the host's disk; `ConfigError` if we lack it."""
    if cache in ("none", "directsync"):
        raise ConfigError(
            f"{flag} {cache}: this verb uses the host's page cache; give writeback or writethrough"
        )
    if cache not in ("writeback", "writethrough", "unsafe"):
        raise ConfigError(f"{flag} {cache}: give writeback, writethrough or unsafe")
    return cache == "unsafe"


def cache_mode(cache: str, flag: str = "-t") -> tuple[bool, bool]:
    """Whether a mode does not wait for the host's disk, and whether it goes around its cache."""
    if cache in ("none", "directsync"):
        return False, True
    if cache not in ("writeback", "writethrough", "unsafe"):
        raise ConfigError(
            f"{flag} {cache}: give writeback, writethrough, none, directsync or unsafe"
        )
    return cache == "unsafe", False


def parse_image_options(texts: list[str] | None) -> dict[str, str]:
    """`-o a=b,c=d`, which may be repeated."""
    found: dict[str, str] = {}
    for text in texts or ():
        found |= split_options(f",{text}", "-o")[1]
    return found


def secret_of(key_file: str | None) -> bytes | None:
    """The passphrase that `--key-file` names."""
    if key_file is None:
        return None
    from ostler.block.crypto.secret import read_secret

    return read_secret(key_file)


def with_secret(options: dict[str, Any], objects: list[str] | None) -> dict[str, Any]:
    """`-o` with the passphrase in place of what names it: `key_secret=NAME` or `key_file=PATH`."""
    if not options and not objects:
        return {}
    from ostler.block.crypto.secret import find_secret, parse_secrets, read_secret

    named = parse_secrets(objects or ())
    found: dict[str, Any] = {}
    for name, value in options.items():
        name = _plain(name)
        match name:
            case "format":
                found["encryption"] = value
            case "secret":
                raise ConfigError(
                    "-o secret=: every user of this host could read it; give key_file=PATH"
                )
            case "key_secret":
                found["secret"] = find_secret(named, value)
            case "key_file":
                found["secret"] = read_secret(value)
            case _:
                found[name] = value
    return found


def _plain(name: str) -> str:
    """QEMU's names for qcow2, encrypt.key-secret say, as those of LUKS: key_secret."""
    return name.replace("-", "_").removeprefix("encrypt.")


def creation_options(
    path: str, format: str, texts: list[str] | None, objects: list[str] | None
) -> dict[str, Any]:
    """`-o` for a new image at `path`; `ConfigError` names what there is if something is not."""
    from ostler.block.registry import find_format

    given = parse_image_options(texts)
    refuse_unknown(format, find_format(format, path).load().Options, given)
    return with_secret(dict(given), objects)


def refuse_unknown(format: str, options: Any, given: Sequence[str] | Mapping[str, str]) -> None:
    """`ConfigError` for a name that is none of the options, or of `size`, which all have."""
    if options is None or not given:
        return
    names = [name for name, _, _ in _written(options)]
    known = {"size", "secret", *options.names(), *map(_plain, names)}
    for name in given:
        if _plain(name) not in known:
            raise ConfigError(
                f"-o {name}: there is no option {name!r} of {format}; there is: {', '.join(names)}"
            )


def wants_help(texts: list[str] | None) -> bool:
    """Whether `-o help` asks what options there are."""
    return any(text in ("help", "?") for text in texts or ())


def show_options(format: str) -> int:
    """Print what options images of a format have."""
    from ostler.block.registry import find_format

    return show_fields(format, find_format(format).load().Options)


def show_fields(format: str, options: Any) -> int:
    """Print what options there are."""
    echo(f"Options of {format}:")
    for name, kind, default in _written(options) if options else ():
        echo(f"  {name}=<{kind}>" + (default and f" (default {default})"))
    return 0


def _written(options: Any) -> Iterator[tuple[str, str, str]]:
    """Each option as it is written, what is written for its value, and its default."""
    import msgspec

    from ostler.block.crypto.options import LuksOptions

    fields = list(msgspec.structs.fields(options.struct()))
    # Where encryption is a choice its options have the prefix that QEMU gives them, and come last.
    is_choice = any(field.name == "encryption" for field in fields)
    if is_choice:
        order = ("encryption", *LuksOptions.names())
        fields.sort(key=lambda field: order.index(field.name) if field.name in order else -1)
    for field in fields:
        default = "" if field.default in (None, msgspec.NODEFAULT) else _shown(field.default)
        name = field.name
        if is_choice and name in LuksOptions.names():
            name = "encrypt." + name.replace("_", "-")
        match field.name:
            case "secret":
                prefix = name.removesuffix("secret")
                yield f"{prefix}key_file", "path of the passphrase", ""
                yield f"{prefix}key-secret", "id of an --object secret", ""
            case "encryption":
                yield "encrypt.format", _kind(field.type), default
            case _:
                yield name, _kind(field.type), default


def _kind(kind: Any) -> str:
    """What is written for a value of this type."""
    if type(None) in get_args(kind):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(str(each) for each in get_args(kind))
    return {int: "number or size", bool: "on|off"}.get(kind, "text")


def _shown(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def is_json(output: str) -> bool:
    """What `--output` asks for."""
    if output not in ("human", "json"):
        raise ConfigError(f"--output {output}: give human or json")
    return output == "json"


def size_option(text: str, what: str) -> int:
    """A size as qemu-img takes it: `10G`, `1.5G`, `512k`, `4096b`."""
    if text.startswith(MINUS):
        raise ConfigError(f"{what} -{text[1:]}: less than nothing; give a size, 10G say")
    if match := re.fullmatch(FRACTION, text, re.IGNORECASE):
        from decimal import Decimal

        return int(Decimal(match[1]) * parse_size(f"1{match[2]}", what))
    lower = text.lower()
    if lower.endswith("b") and not lower.startswith("0x") and lower[:-1].isdigit():
        text = text[:-1]
    return parse_size(text.removesuffix("iB"), what)


def human_size(size: int) -> str:
    """`5 MiB`, as QEMU writes it: three significant digits."""
    value, unit = float(size), 0
    while value >= 1000 and unit < 6:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[unit]}B"


def print_json(value: Any) -> None:
    """The value as QEMU prints it."""
    import json

    echo(json.dumps(value, indent=4, ensure_ascii=False))


def finish(job: Job[T], *, progress: bool) -> T:
    """Wait for a job; Ctrl-C and SIGTERM cancel it."""
    try:
        if not progress:
            return job.wait()
        try:
            return job.watch(_report)
        finally:
            sys.stdout.write("\n")
    except BaseException:
        job.cancel()
        # It removes what it has made so far.
        with suppress(OstlerError):
            job.wait()
        raise


def _report(done: int, total: int) -> None:
    share = 100 * done / total if total else 100.0
    sys.stdout.write(f"    ({share:.2f}/100%)\r")
    sys.stdout.flush()

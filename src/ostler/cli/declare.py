"""How `ostler run` and the verbs of `ostler image` say what they take, before a parser is loaded.

`Option` and `Argument` stand where typer's would in `Annotated`, with the same arguments. The
common command line is read by what they say alone (`quick.py`); help and mistakes are typer's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class Declared(NamedTuple):
    """What a parameter is on the command line."""

    names: tuple[str, ...]
    """Of an option; an argument has none."""
    details: dict[str, Any]
    """`help`, `metavar`, and what else typer knows."""


def Option(name: str, *others: str, **details: Any) -> Declared:  # noqa: N802 - as typer's
    """An option; without a name it would be an argument."""
    return Declared((name, *others), details)


def Argument(**details: Any) -> Declared:  # noqa: N802 - as typer's
    """An argument."""
    return Declared((), details)


def declared(annotation: Any) -> tuple[Any, Declared | None]:
    """The type, and what was declared of it."""
    if get_origin(annotation) is not Annotated:
        return annotation, None
    kind, *others = get_args(annotation)
    return kind, next((each for each in others if isinstance(each, Declared)), None)


def for_typer(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The same verb, annotated as typer reads it."""
    from types import FunctionType

    import typer

    same = FunctionType(verb.__code__, verb.__globals__, verb.__name__, verb.__defaults__)
    same.__doc__ = verb.__doc__
    for name, annotation in get_type_hints(verb, include_extras=True).items():
        kind, found = declared(annotation)
        if found is not None:
            says = typer.Option if found.names else typer.Argument
            annotation = Annotated[kind, says(*found.names, **found.details)]
        same.__annotations__[name] = annotation
    return same


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, at once."""
    print(text, file=sys.stderr if err else sys.stdout, flush=True)

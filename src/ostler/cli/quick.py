"""Command lines as most are, read without typer, whose import takes longer than many a verb.

The standard library's getopt takes them apart by what a verb declares. What is not plain (a
mistake, a call for help, an abbreviated option, an option with a callback) is left to typer, so
that there is one voice that answers: `read` says `None`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from getopt import GetoptError, gnu_getopt
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from ostler.cli.declare import Declared, declared

PLAIN = {"help", "metavar"}


class Parameter(NamedTuple):
    """A parameter of a verb."""

    name: str
    kind: type[Any]
    """Of one value."""
    is_list: bool
    is_required: bool
    declared: Declared
    is_plain: bool = True
    """Not so where typer has to do something when it sees the option."""


def read(verb: Callable[..., Any], words: Sequence[str]) -> dict[str, Any] | None:
    """The arguments to call `verb` with; `None` if the command line is not plain."""
    parameters = _parameters(verb)
    if parameters is None or any(is_negative(word) for word in words):
        return None
    options = {name: each for each in parameters for name in each.declared.names}
    if not all(_is_known(word, options) for word in words):
        return None
    try:
        found, rest = gnu_getopt(list(words), *_spelled(options))
        values = _arguments([each for each in parameters if not each.declared.names], rest)
        if not all(options[name].is_plain for name, _ in found):
            return None
        for name, text in found:
            _add(values, options[name], text)
    except (GetoptError, ValueError):
        return None
    missing = any(each.is_required and each.name not in values for each in parameters)
    return None if missing else values


def is_negative(word: str) -> bool:
    """Whether this is a number less than zero, which a parser would take for options: `-5G`."""
    return word[:1] == "-" and word[1:].removeprefix(".")[:1].isdigit()


def _parameters(verb: Callable[..., Any]) -> list[Parameter] | None:
    """What the verb declares; `None` if there is more to it than names."""
    code, defaults = verb.__code__, verb.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    hints = get_type_hints(verb, include_extras=True)
    found = []
    for at, name in enumerate(names):
        kind, said = declared(hints[name])
        if said is None or any("/" in n for n in said.names):
            return None
        is_plain = said.details.keys() <= PLAIN
        if not is_plain and not said.names:
            return None
        kind, is_list = _value(kind)
        required = at < len(names) - len(defaults)
        found.append(Parameter(name, kind, is_list, required, said, is_plain))
    return found


def _value(kind: Any) -> tuple[type[Any], bool]:
    """The type of one value, and whether there are many: `list[str] | None` is `str`, many."""
    if type(None) in get_args(kind):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    is_list = get_origin(kind) is list
    return (get_args(kind)[0], True) if is_list else (kind, False)


def _is_known(word: str, options: dict[str, Parameter]) -> bool:
    """Not so for a long option that is abbreviated, which getopt would take."""
    return not word.startswith("--") or word.partition("=")[0] in options or word == "--"


def _spelled(options: dict[str, Parameter]) -> tuple[str, list[str]]:
    """The options as getopt takes them."""
    short, long = "", []
    for name, parameter in options.items():
        takes_value = parameter.kind is not bool
        if name.startswith("--"):
            long.append(name[2:] + "=" * takes_value)
        else:
            short += name[1:] + ":" * takes_value
    return short, long


def _arguments(parameters: list[Parameter], words: list[str]) -> dict[str, Any]:
    """What has no option's name, in order; `ValueError` if there are too many."""
    values: dict[str, Any] = {}
    rest = list(words)
    for parameter in parameters:
        taken = len(rest) if parameter.is_list else min(1, len(rest))
        for word in rest[:taken]:
            _add(values, parameter, word)
        del rest[:taken]
    if rest:
        raise ValueError(rest)
    return values


def _add(values: dict[str, Any], parameter: Parameter, text: str) -> None:
    kind = parameter.kind
    if kind not in (str, int, bool) and not issubclass(kind, os.PathLike):
        raise ValueError(kind)
    value = True if kind is bool else kind(text)
    if parameter.is_list:
        values.setdefault(parameter.name, []).append(value)
    else:
        values[parameter.name] = value

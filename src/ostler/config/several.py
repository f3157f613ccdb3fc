"""What a parameter of the Python interface takes that stands for one thing or for several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args

from ostler.errors import ConfigError

M = TypeVar("M")


def several(
    given: object,
    parse: Callable[[Any], M],
    model: Any,
    parameter: str,
    *,
    texts: tuple[type, ...] = (str,),
) -> tuple[M, ...]:
    """The models of one text or model, or of an iterable of such.

    What is of the types `texts` goes through `parse`; `model` is the class, or the union of
    classes, of what is taken as it is. `ConfigError`, which names `parameter`, for anything else.
    """
    kinds: tuple[type, ...] = get_args(model) or (model,)
    if isinstance(given, (*texts, *kinds)):
        given = (given,)
    if not isinstance(given, Iterable):
        raise _wrong(given, kinds, parameter)
    found: list[Any] = []
    for item in given:
        if not isinstance(item, (*texts, *kinds)):
            raise _wrong(item, kinds, parameter)
        found.append(parse(item) if isinstance(item, texts) else item)
    return tuple(found)


def _wrong(item: object, kinds: tuple[type, ...], parameter: str) -> ConfigError:
    names = " or ".join(kind.__name__ for kind in kinds)
    return ConfigError(f"{parameter}={item!r}: give a text, {names}, or a list of them")

"""Errors by the names of Python's parameters.

What a machine is made of is checked in one place, whose messages name the options of `ostler run`.
Who writes Python gave a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from ostler.errors import OstlerError

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

PARAMETERS = {
    "--accel": "accelerator", "--append": "append", "--console": "consoles", "--cpu": "cpu",
    "--cpus": "cpus", "--device": "devices", "--disk": "disks", "--initrd": "initrd",
    "--kernel": "kernel", "--memory": "memory", "--name": "name", "--net": "net", "--plug": "plug",
    "--profile": "profile", "--publish": "publish", "--share": "shares", "--soft-jit": "soft_jit",
    "--symbols": "symbols", "--vsock": "devices",
}  # fmt: skip
OPTION = re.compile(r"(?<!\S)--[a-z]+(?:-[a-z]+)*")
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def by_parameters(text: str) -> str:
    """The same with parameters in place of options; commands to run stay as they are."""
    said, command, rest = text.partition("ostler ")
    named = OPTION.sub(lambda found: PARAMETERS.get(found[0], found[0]), said)
    return named + command + rest


@contextmanager
def _named_by_parameters() -> Iterator[None]:
    try:
        yield
    except OstlerError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (by_parameters(error.args[0]), *error.args[1:])
        raise
    except TypeError as error:
        meant = _meant(str(error))
        if meant:
            raise TypeError(f"{error}; give it as {meant}=") from None
        raise


def _meant(said: str) -> str | None:
    """The parameter of which an option's name was given."""
    found = UNEXPECTED.search(said)
    return PARAMETERS.get("--" + found[1].replace("_", "-")) if found else None


def told_by_parameters(act: Callable[P, T]) -> Callable[P, T]:
    """Have what `act` raises name parameters."""

    @wraps(act)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        with _named_by_parameters():
            return act(*args, **kwargs)

    return told


def told_as_made(act: Callable[[S], T]) -> Callable[[S], T]:
    """The same, for a method of what was made `in_python`; others were asked for by options."""

    @wraps(act)
    def told(made: S) -> T:
        return (told_by_parameters(act) if getattr(made, "in_python", False) else act)(made)

    return told

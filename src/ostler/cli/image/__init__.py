"""`ostler image`: disk images and what guests start from, one file per verb.

The verbs for disks take the flags of `qemu-img`, print what it prints and end with its exit codes.
What they do is in `ostler.block`, which each loads when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ostler.cli.declare import for_typer
from ostler.cli.quick import is_negative, read

if TYPE_CHECKING:
    import typer

VERBS = {
    "create": "create",
    "info": "info",
    "check": "check",
    "convert": "convert",
    "compare": "compare",
    "map": "map_image",
    "measure": "measure",
    "bench": "bench",
    "dd": "dd",
    "resize": "resize",
    "snapshot": "snapshot",
    "rebase": "rebase",
    "commit": "commit",
    "amend": "amend",
    "bitmap": "bitmap",
    "serve": "serve",
    "initramfs": "initramfs",
}
"""`ostler image NAME`: the function in `ostler.cli.image.NAME`, in the order of the help."""

TAKES_MINUS = ("create", "resize")
"""Verbs that have a size among their arguments, -5G say."""


def quick(words: Sequence[str]) -> Callable[[], Any] | None:
    """The verb that a plain command line names, with its arguments; `None` if it is not plain."""
    if not words or words[0] not in VERBS:
        return None
    verb = _load(words[0])
    arguments = read(verb, words[1:])
    return None if arguments is None else partial(verb, **arguments)


def build_app(verb: str | None = None) -> typer.Typer:
    """The verbs; only `verb`, if there is one of that name, so that no other is loaded."""
    import typer

    app = typer.Typer(help="Make, inspect and change disk images.", no_args_is_help=True)
    app.callback()(_options)
    for name in [verb] if verb in VERBS else VERBS:
        assert name is not None
        app.command(name, cls=_command(name))(for_typer(_load(name)))
    return app


def _load(name: str) -> Callable[..., Any]:
    verb: Callable[..., Any] = getattr(import_module(f"ostler.cli.image.{name}"), VERBS[name])
    return verb


def _command(name: str) -> Any:
    if name not in TAKES_MINUS:
        return None
    from typer.core import TyperCommand

    from ostler.cli.image.options import MINUS

    class SignedCommand(TyperCommand):
        """A command that takes `-5G` for an argument, not for the option -5."""

        def parse_args(self, context: Any, args: list[str]) -> list[str]:
            """Mark what begins with a minus and a digit."""
            marked = [MINUS + text[1:] if is_negative(text) else text for text in args]
            return super().parse_args(context, marked)

    return SignedCommand


def _options() -> None:
    """Make, inspect and change disk images; the flags are those of qemu-img."""

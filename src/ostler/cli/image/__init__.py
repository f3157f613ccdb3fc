"""`ostler image`: disk images and what guests start from, one file per verb.

The verbs for disks take the flags of `qemu-img`, print what it prints and end with its exit codes.
What they do is in `ostler.block`, which each loads when it runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

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


def build_app(verb: str | None = None) -> typer.Typer:
    """The verbs; only `verb`, if there is one of that name, so that no other is loaded."""
    app = typer.Typer(help="Make, inspect and change disk images.", no_args_is_help=True)
    app.callback()(_options)
    for name in [verb] if verb in VERBS else VERBS:
        assert name is not None
        function = getattr(import_module(f"ostler.cli.image.{name}"), VERBS[name])
        app.command(name, cls=_command(name))(function)
    return app


def _command(name: str) -> Any:
    if name not in TAKES_MINUS:
        return None
    from ostler.cli.image.options import SignedCommand

    return SignedCommand


def _options() -> None:
    """Make, inspect and change disk images; the flags are those of qemu-img."""

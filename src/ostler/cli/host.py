"""`ostler host`: look at the machine that guests run on."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="Look at the machine that guests run on.", no_args_is_help=True)


@app.callback()
def host() -> None:
    """Look at the machine that guests run on."""


@app.command()
def check(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of lines.")
    ] = False,
) -> int:
    """Say what this host has of all that a hypervisor wants, and time kernel-mode guest code.

    One line a subject: PASS; WARN, where guests run but slower or without something; FAIL, where
    hardware virtualization cannot be used, so that guests run on the software CPU. Behind a
    semicolon stands the cure. Exit code: 0 without a FAIL, 1 with one.

    Example: ostler host check --json | jq -r .status
    """
    from ostler.host import check as look

    report = look()
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else report)
    return report.exit_code

"""`ostler net`: what this host knows of its machines' networks."""

from __future__ import annotations

from typing import Annotated

import typer

from ostler.errors import ConfigError

app = typer.Typer(help="Look at the machines' networks.", no_args_is_help=True)
mac_app = typer.Typer(help="The registry of MAC addresses.", no_args_is_help=True)
app.add_typer(mac_app, name="mac")


@mac_app.command("list")
def list_macs() -> None:
    """Print every MAC address that a machine of this host has, and which.

    Example: ostler net mac list
    """
    from ostler.net.mac import MacRegistry

    registry = MacRegistry()
    entries = registry.entries()
    if not entries:
        typer.echo(f"no machine has an address now, and none is kept ({registry.path})", err=True)
    for entry in entries:
        state = f"runs as process {entry.pid}" if entry.pid is not None else "kept"
        typer.echo(f"{entry.mac}  {entry.vm} net{entry.card}  {state}")


@mac_app.command("forget")
def forget_macs(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A machine that does not run.")],
) -> None:
    """Give up the MAC addresses kept for a machine.

    Example: ostler net mac forget web1
    """
    from ostler.net.mac import MacRegistry

    if not MacRegistry().forget(name):
        raise ConfigError(f"no address is kept for {name}; see ostler net mac list")

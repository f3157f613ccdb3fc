"""Which accelerator a machine gets on this host."""

from __future__ import annotations

from ostler.config import AcceleratorChoice
from ostler.engine import VirtualMachine
from ostler.errors import HostError
from ostler.host.accelerator import Chooser, Decision
from ostler.host.cache import SpeedCache, directory
from ostler.host.view import HostView, cpu_mhz


def choose(choice: AcceleratorChoice) -> Decision:
    """The first of the candidates that this host has, or for `auto` the faster one.

    Raises:
        HostError: it has none of them; one line with the reason of each.
    """
    host = HostView()
    cache = SpeedCache(host, directory())
    return Chooser(why_not, kernel_mode_mips, cache, lambda: cpu_mhz(host)).choose(choice)


def why_not(accelerator: str) -> str | None:
    """Why this host cannot make machines of `accelerator`: cause and cure; `None` if it can."""
    try:
        VirtualMachine(accelerator).close()
    except HostError as error:
        return str(error)
    return None


def kernel_mode_mips(accelerator: str) -> float:
    """Million kernel-mode instructions a second, by measurement."""
    from ostler.host.speed import measure  # here, as it is needed once a boot

    return measure(accelerator).mips

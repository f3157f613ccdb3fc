"""Which accelerator a machine gets on this host."""

from __future__ import annotations

from functools import partial

from ostler.config import AcceleratorChoice
from ostler.config.accelerator import KVM, KvmOptions
from ostler.engine import VirtualMachine
from ostler.errors import HostError
from ostler.host.accelerator import Chooser, Decision
from ostler.host.cache import SpeedCache, directory
from ostler.host.view import HostView, cpu_mhz

AS_USUAL = KvmOptions()


def choose(choice: AcceleratorChoice, cpus: int = 1) -> Decision:
    """The first of the candidates that this host has for `cpus`, or for `auto` the faster one.

    Raises:
        HostError: it has none of them; one line with the reason of each.
    """
    host = HostView()
    cache = SpeedCache(host, directory())
    cannot = partial(why_not, options=choice.kvm.for_cpus(cpus))
    return Chooser(cannot, kernel_mode_mips, cache, lambda: cpu_mhz(host)).choose(choice)


def new_machine(
    accelerator: str, options: KvmOptions = AS_USUAL, soft_jit: str = "on"
) -> VirtualMachine:
    """A machine of `accelerator`, with what is asked of `kvm` where it is that."""
    if accelerator != KVM:
        return VirtualMachine(accelerator, soft_jit=soft_jit)
    return VirtualMachine(
        accelerator, dirty_ring=options.dirty_ring, split_irqchip=bool(options.split_irqchip)
    )


def why_not(accelerator: str, options: KvmOptions = AS_USUAL) -> str | None:
    """Why this host cannot make machines of `accelerator`: cause and cure; `None` if it can."""
    try:
        new_machine(accelerator, options).close()
    except HostError as error:
        return str(error)
    return None


def kernel_mode_mips(accelerator: str) -> float:
    """Million kernel-mode instructions a second, by measurement."""
    from ostler.host.speed import measure  # here, as it is needed once a boot

    return measure(accelerator).mips

"""What `/dev/kvm`'s ioctls give C, as Python: VMs, memory, vCPUs, registers, interrupts, exits.

    vm = VirtualMachine()                       # on the software CPU
    vm.memory.add_slot(0, gpa=0, size=0x10000)  # 64 KiB of RAM at address 0
    vm.memory.write(0x1000, code)
    vcpu = vm.create_vcpu(0)
    vcpu.set_regs(rip=0x1000, rflags=2)
    match vcpu.run():                           # until something needs an answer
        case IoOut(port=0x3F8, data=data): ...

A VM answers by itself what it can: `vm.bus` knows which device owns a port or address, and asks
devices written in Python under the GIL, all others without. With `vm.start`, every vCPU runs on a
thread of its own.

This package is the only importer of the extension module.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ostler import _native
from ostler._native import (
    Bus,
    ChipWindow,
    Clock,
    EthernetChip,
    IrqInput,
    IrqLine,
    Memory,
    MsiRoute,
    NetLink,
    NetSwitch,
    Profiler,
    Threads,
    Vcpu,
    VirtioBalloon,
    VirtioDisk,
    VirtioFeed,
    VirtioNic,
    VirtioScsi,
    VirtioVsock,
    VirtioWorker,
    VirtioWorkers,
)

if TYPE_CHECKING:
    from ostler.engine.access import BusDevice, Space
    from ostler.engine.exits import (
        Debug,
        Exit,
        Hlt,
        InternalError,
        Interrupted,
        IoIn,
        IoOut,
        MmioRead,
        MmioWrite,
        Shutdown,
    )
    from ostler.engine.network import NetLinks
    from ostler.engine.virtio import QueueSetup
    from ostler.registers import (
        CpuidEntry,
        DebugRegs,
        DescriptorTable,
        Events,
        GuestDebug,
        IoapicState,
        IrqchipState,
        LapicState,
        MpState,
        PicState,
        PitChannelState,
        Regs,
        Segment,
        Sregs,
        XsaveArea,
    )

__all__ = [
    "Bus",
    "BusDevice",
    "ChipWindow",
    "Clock",
    "CpuidEntry",
    "Debug",
    "DebugRegs",
    "DescriptorTable",
    "EthernetChip",
    "Events",
    "Exit",
    "GuestDebug",
    "Hlt",
    "InternalError",
    "Interrupted",
    "IoIn",
    "IoOut",
    "IoapicState",
    "IrqInput",
    "IrqLine",
    "IrqchipState",
    "LapicState",
    "Memory",
    "MmioRead",
    "MmioWrite",
    "MpState",
    "MsiRoute",
    "NetLink",
    "NetLinks",
    "NetSwitch",
    "PicState",
    "PitChannelState",
    "Profiler",
    "QueueSetup",
    "Regs",
    "Segment",
    "Shutdown",
    "Space",
    "Sregs",
    "Threads",
    "Vcpu",
    "VirtioBalloon",
    "VirtioDisk",
    "VirtioFeed",
    "VirtioNic",
    "VirtioScsi",
    "VirtioVsock",
    "VirtioWorker",
    "VirtioWorkers",
    "VirtualMachine",
    "XsaveArea",
]

# Looked up when first used: who only wants a disk image loads no registers of a vCPU.
_HOMES = {
    "BusDevice": "ostler.engine.access",
    "Space": "ostler.engine.access",
    "Debug": "ostler.engine.exits",
    "Exit": "ostler.engine.exits",
    "Hlt": "ostler.engine.exits",
    "InternalError": "ostler.engine.exits",
    "Interrupted": "ostler.engine.exits",
    "IoIn": "ostler.engine.exits",
    "IoOut": "ostler.engine.exits",
    "MmioRead": "ostler.engine.exits",
    "MmioWrite": "ostler.engine.exits",
    "Shutdown": "ostler.engine.exits",
    "NetLinks": "ostler.engine.network",
    "QueueSetup": "ostler.engine.virtio",
    "CpuidEntry": "ostler.registers",
    "DebugRegs": "ostler.registers",
    "DescriptorTable": "ostler.registers",
    "Events": "ostler.registers",
    "GuestDebug": "ostler.registers",
    "IoapicState": "ostler.registers",
    "IrqchipState": "ostler.registers",
    "LapicState": "ostler.registers",
    "MpState": "ostler.registers",
    "PicState": "ostler.registers",
    "PitChannelState": "ostler.registers",
    "Regs": "ostler.registers",
    "Segment": "ostler.registers",
    "Sregs": "ostler.registers",
    "XsaveArea": "ostler.registers",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ostler.engine' has no attribute {name!r}")


_live: WeakSet[Threads] = WeakSet()


class VirtualMachine(_native.VirtualMachine):
    """A virtual machine of an accelerator: memory, a bus, a clock, and what vCPUs are made from.

    `soft_jit` says when `soft` translates code to the host's: `on` for what is hot, `off` for
    never, `eager` for everything. `dirty_ring` has `kvm` log writes in a ring of so many entries
    for each vCPU, a power of two from 1024 on, in place of a bitmap: `memory.dirty_log` gives the
    same, at a cost by what was written and not by the size of memory; `soft` has no use for one.
    `split_irqchip` has `kvm` leave PIC, IOAPIC and PIT to this process, where `soft` has them.
    `ConfigError` when there is no such accelerator.
    """

    def start(
        self,
        vcpus: Iterable[Vcpu],
        on_exit: Callable[[int, Exit], object],
        *,
        paused: bool = False,
    ) -> Threads:
        """Run each vCPU on a thread of its own, named `vcpu0`, `vcpu1`...

        `on_exit(id, exit)` is called on the vCPU's thread for every exit that nobody answered; the
        VM is paused then. With `paused`, `Threads.resume` starts the guest. Threads that still run
        when the interpreter ends are stopped.
        """
        threads = super().start(list(vcpus), on_exit, paused=paused)
        _live.add(threads)
        return threads


@atexit.register
def _stop_all() -> None:
    """End the threads before the interpreter that their devices need is gone."""
    for threads in list(_live):
        threads.stop()

"""Puts a kernel and its surroundings into a board's memory."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from ostler.config import MachineConfig
from ostler.errors import KernelError
from ostler.firmware import initramfs, linux
from ostler.firmware.acpi import board as acpi
from ostler.firmware.acpi.tables import RSDP_GPA, build_tables
from ostler.firmware.boot import load_kernel
from ostler.firmware.plan import BootPlan, Buffer, Load, Part, Sink, Stream
from ostler.firmware.source import view
from ostler.machine import memory_map as at

# Zeros for a bss are written in pieces of this size.
ZEROS = bytes(1 << 20)


def plan_boot(config: MachineConfig) -> BootPlan:
    """What to write where for the configured kernel; `KernelError` when it cannot be booted."""
    return load_kernel(
        config.kernel,
        memory_map=at.e820(config.memory.size_bytes),
        cmdline=config.append,
        initrd=config.initrd,
        rsdp_gpa=RSDP_GPA,
    )


def doubt_initrd(config: MachineConfig) -> str:
    """A line of warning where Linux would start from what it cannot read; else nothing."""
    if config.initrd is None or config.kernel.is_fifo() or config.initrd.is_fifo():
        return ""
    if not linux.is_linux(view(config.kernel, "kernel")):
        return ""
    if initramfs.is_readable(view(config.initrd, "initrd")):
        return ""
    return (
        f"initrd {str(config.initrd)!r} is no cpio archive, plain or packed, so Linux will find no"
        " /init in it; `ostler image initramfs` makes one"
    )


def acpi_tables(config: MachineConfig) -> bytes:
    """The tables that describe the `virt` board; they go to `RSDP_GPA`."""
    windows = at.pci_windows(config.memory.size_bytes, config.hot_bytes)
    return build_tables(
        acpi.Board(
            apic_ids=range(config.cpu.count),
            pci_mmio32=acpi.Window(windows.low_base, windows.low_bytes),
            pci_mmio64=acpi.Window(windows.high_base, windows.high_bytes),
            pci_io=acpi.Window(windows.io_base, windows.io_bytes),
            lapic_gpa=at.LAPIC_GPA,
            ioapic_gpa=at.IOAPIC_GPA,
            sci_irq=at.SCI_IRQ,
            pm_base=at.ACPI_PM_PORT,
            reset_port=at.RESET_PORT,
            serial_ports=(acpi.SerialPort(at.SERIAL_PORT, at.SERIAL_IRQ),),
            rtc_irq=at.RTC_IRQ,
            fw_cfg_port=at.FW_CFG_PORT,
            pvpanic_port=at.PVPANIC_PORT,
            vmgenid_gpa=at.VMGENID_GPA,
            vmgenid_irq=at.VMGENID_IRQ,
        )
    )


class BootMemory(Protocol):
    """Where a boot plan is written to; addresses in bytes."""

    def write(self, gpa: int, data: Buffer) -> None:
        """Store `data` at `gpa`; called on several threads."""


def write_boot(plan: BootPlan, tables: bytes, memory: BootMemory) -> None:
    """Put the plan's loads and the ACPI tables into guest memory.

    `KernelError` when a packed kernel turns out to be damaged.
    """
    for load in plan.loads:
        if not isinstance(load.data, Part):
            memory.write(load.gpa, load.data)
        _zero(load, memory)
    unpack_streams(plan, memory)
    memory.write(RSDP_GPA, tables)


def unpack_streams(plan: BootPlan, memory: BootMemory) -> None:
    """Unpack what is packed straight to its places in guest memory."""
    try:
        for stream, sinks in _sinks(plan, memory).items():
            stream.unpack(partial(_scatter, sinks))
    except KernelError as error:
        raise KernelError(f"kernel {plan.kernel} {error}") from None


def _sinks(plan: BootPlan, memory: BootMemory) -> dict[Stream, list[Sink]]:
    found: dict[Stream, list[Sink]] = {}
    for load in plan.loads:
        if isinstance(load.data, Part):
            store = partial(_store, memory, load.gpa)
            found.setdefault(load.data.stream, []).append(load.data.sink(store))
    return found


def _store(memory: BootMemory, gpa: int, offset: int, piece: Buffer) -> None:
    memory.write(gpa + offset, piece)


def _scatter(sinks: list[Sink], offset: int, piece: Buffer) -> None:
    for sink in sinks:
        sink(offset, piece)


def _zero(load: Load, memory: BootMemory) -> None:
    gpa = load.gpa + len(load.data)
    while gpa < load.end:
        piece = ZEROS[: load.end - gpa]
        memory.write(gpa, piece)
        gpa += len(piece)

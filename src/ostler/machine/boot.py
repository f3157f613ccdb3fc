"""Puts a kernel and its surroundings into a board's memory."""

from __future__ import annotations

from ostler.config import MachineConfig
from ostler.devices.device import GuestMemory
from ostler.firmware.acpi import board as acpi
from ostler.firmware.acpi.tables import RSDP_GPA, build_tables
from ostler.firmware.boot import load_kernel
from ostler.firmware.plan import BootPlan, Load
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


def acpi_tables(config: MachineConfig) -> bytes:
    """The tables that describe the `virt` board; they go to `RSDP_GPA`."""
    windows = at.pci_windows(config.memory.size_bytes)
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
        )
    )


def write_boot(plan: BootPlan, tables: bytes, memory: GuestMemory) -> None:
    """Put the plan's loads and the ACPI tables into guest memory."""
    for load in plan.loads:
        _write(load, memory)
    memory.write(RSDP_GPA, tables)


def _write(load: Load, memory: GuestMemory) -> None:
    memory.write(load.gpa, bytes(load.data))
    gpa = load.gpa + len(load.data)
    while gpa < load.end:
        piece = ZEROS[: load.end - gpa]
        memory.write(gpa, piece)
        gpa += len(piece)

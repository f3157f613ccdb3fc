"""What the ACPI tables say about a board, as plain data; the defaults are the `virt` board's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """`size` addresses (memory) or ports (I/O) from `base` on."""

    base: int
    size: int

    @property
    def last(self) -> int:
        """The last address inside."""
        return self.base + self.size - 1


@dataclass(frozen=True, slots=True)
class SerialPort:
    """A 16550 at eight ports from `port` on, with an edge-triggered ISA interrupt."""

    port: int
    irq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """A board for `tables.build_tables`. Addresses are guest physical, interrupts ISA IRQs or GSIs.

    `apic_ids` has one local APIC id for each CPU, boot CPU first. `pci_mmio64`, `fw_cfg_port`,
    `pvpanic_port` and `vmgenid_gpa` are None where the board has none. `pm_base` is 16-byte
    aligned: PM1a event block (4) at +0, PM1a control (2) at +4, PM timer (4, counts 32 bits) at +8.
    A write of `reset_value` to `reset_port` resets; `s5_slp_typ` in SLP_TYP switches the power off.
    """

    apic_ids: Sequence[int]
    pci_mmio32: Window = Window(0xC000_0000, 0x2000_0000)
    pci_mmio64: Window | None = None
    pci_io: Window = Window(0xC000, 0x4000)
    ecam: Window = Window(0xE000_0000, 0x10_0000)
    pci_intx_gsis: tuple[int, int, int, int] = (16, 17, 18, 19)
    lapic_gpa: int = 0xFEE0_0000
    ioapic_gpa: int = 0xFEC0_0000
    ioapic_id: int = 0
    sci_irq: int = 9
    pm_base: int = 0x600
    s5_slp_typ: int = 5
    reset_port: int = 0xCF9
    reset_value: int = 6
    serial_ports: Sequence[SerialPort] = (SerialPort(0x3F8, 4),)
    rtc_irq: int = 8
    fw_cfg_port: int | None = 0x510
    pvpanic_port: int | None = 0x505
    vmgenid_gpa: int | None = None
    vmgenid_irq: int = 5

"""Where things lie in the `virt` board's guest physical memory and among its I/O ports."""

from __future__ import annotations

from dataclasses import dataclass

from ostler.devices.pci.host import ECAM_BUS_BYTES, Windows
from ostler.firmware.plan import E820_RAM, E820_RESERVED, MemoryRange
from ostler.machine.hardware import Range

KIB, GIB = 1 << 10, 1 << 30

LOW_RAM_END = 3 * GIB
HIGH_RAM_BASE = 4 * GIB
BASE_MEMORY_END = 639 * KIB  # the last KiB below 640 KiB is where a BIOS would have its data area
BIOS_AREA_END = 1024 * KIB  # from BASE_MEMORY_END up: reserved, the ACPI tables lie in it
PCI_HIGH_ALIGNMENT = 64 * GIB
PCI_WINDOWS = Windows()

IOAPIC_GPA, LAPIC_GPA = 0xFEC0_0000, 0xFEE0_0000

SERIAL_PORT, SERIAL_IRQ = 0x3F8, 4
RTC_PORT, RTC_IRQ = 0x70, 8
KEYBOARD_DATA_PORT, KEYBOARD_COMMAND_PORT = 0x60, 0x64
KEYBOARD_IRQ, AUX_IRQ = 1, 12
ACPI_PM_PORT, SCI_IRQ = 0x600, 9
FW_CFG_PORT = 0x510
RESET_PORT = 0xCF9
PVPANIC_PORT = 0x505
VMGENID_GPA, VMGENID_IRQ = 0xD_F000, 5

IRQCHIP_RANGES = (
    Range("pio", 0x20, 2, "pic"),
    Range("pio", 0x40, 4, "pit"),
    Range("pio", 0x61, 1, "pit-speaker"),
    Range("pio", 0xA0, 2, "pic"),
    Range("pio", 0x4D0, 2, "pic-elcr"),
    Range("mmio", IOAPIC_GPA, 0x1000, "ioapic"),
    Range("mmio", LAPIC_GPA, 0x1000, "lapic"),
)


@dataclass(frozen=True, slots=True)
class RamRegion:
    """`size` bytes of RAM from guest physical `gpa` on."""

    gpa: int
    size: int


def ram_regions(size_bytes: int) -> tuple[RamRegion, ...]:
    """Where `size_bytes` of RAM go: below 3 GiB, and what is left from 4 GiB on."""
    low = min(size_bytes, LOW_RAM_END)
    high = size_bytes - low
    regions = (RamRegion(0, low), RamRegion(HIGH_RAM_BASE, high))
    return tuple(region for region in regions if region.size)


def e820(size_bytes: int) -> tuple[MemoryRange, ...]:
    """The memory map a kernel is given, in ascending order."""
    low, *high = ram_regions(size_bytes)
    return (
        MemoryRange(0, BASE_MEMORY_END, E820_RAM),
        MemoryRange(BASE_MEMORY_END, BIOS_AREA_END - BASE_MEMORY_END, E820_RESERVED),
        MemoryRange(BIOS_AREA_END, low.size - BIOS_AREA_END, E820_RAM),
        MemoryRange(PCI_WINDOWS.ecam_base, ECAM_BUS_BYTES, E820_RESERVED),
        *(MemoryRange(region.gpa, region.size, E820_RAM) for region in high),
    )


def hot_region(size_bytes: int, hot_bytes: int) -> RamRegion:
    """Where memory comes and goes: above all other RAM and 4 GiB, 1 GiB aligned."""
    top = max(HIGH_RAM_BASE, *(region.gpa + region.size for region in ram_regions(size_bytes)))
    return RamRegion(-(-top // GIB) * GIB, hot_bytes)


def pci_windows(size_bytes: int, hot_bytes: int = 0) -> Windows:
    """The PCI windows; the 64-bit one begins above all RAM, 64 GiB aligned."""
    hot = hot_region(size_bytes, hot_bytes)
    top = max(region.gpa + region.size for region in (*ram_regions(size_bytes), hot))
    high_base = -(-top // PCI_HIGH_ALIGNMENT) * PCI_HIGH_ALIGNMENT
    return Windows(high_base=high_base)

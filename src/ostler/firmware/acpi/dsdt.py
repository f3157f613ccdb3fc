"""The DSDT's namespace: PCI host bridge, ISA devices, motherboard resources, CPUs, `\\_S5`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from ostler.firmware.acpi import resources
from ostler.firmware.acpi.aml import (
    and_,
    arg,
    buffer,
    create_dword_field,
    device,
    eisa_id,
    else_,
    equal,
    if_,
    integer,
    method,
    name,
    name_string,
    not_,
    notify,
    or_,
    package,
    return_,
    scope,
    string,
)
from ostler.firmware.acpi.board import Board, SerialPort

PCI_CONFIG_PORT = 0xCF8
PCI_SLOTS = 32
PCI_PINS = 4
ANY_FUNCTION = 0xFFFF
PCI_HOST_BRIDGE_UUID = uuid.UUID("33db4d5b-1ff7-401c-9657-7441c03dd766")
# PME, AER and the PCI Express capability; there are no slots whose hot-plug could be handed over.
OSC_GRANTED = 0x1C
OSC_UNRECOGNIZED_UUID = 1 << 2
OSC_UNRECOGNIZED_REVISION = 1 << 3
OSC_CAPABILITIES_MASKED = 1 << 4
PRESENT_NOT_SHOWN = 0x0B
PRESENT = 0x0F
DEVICE_SPECIFIC = 0x80  # the first notification value whose meaning is the device's own


def namespace(board: Board) -> bytes:
    """The definition block's terms."""
    system_bus = [
        _pci(board),
        _motherboard(board),
        *(_serial(uid, port) for uid, port in enumerate(board.serial_ports, start=1)),
        _rtc(board.rtc_irq),
        *_fw_cfg(board.fw_cfg_port),
        *_pvpanic(board.pvpanic_port),
        *_vmgenid(board.vmgenid_gpa, board.vmgenid_irq),
        *_processors(len(board.apic_ids)),
    ]
    soft_off = package(*(integer(value) for value in (board.s5_slp_typ, board.s5_slp_typ, 0, 0)))
    return scope("\\_SB", *system_bus) + name("\\_S5", soft_off)


def _pci(board: Board) -> bytes:
    buses = (board.ecam.size >> 20) - 1
    windows = [
        resources.bus_numbers(0, buses),
        resources.io(PCI_CONFIG_PORT, 8),
        resources.io_window(board.pci_io.base, board.pci_io.last),
        resources.memory_window(board.pci_mmio32.base, board.pci_mmio32.last),
    ]
    if board.pci_mmio64 is not None:
        windows.append(resources.memory_window(board.pci_mmio64.base, board.pci_mmio64.last))
    return device(
        "PCI0",
        name("_HID", eisa_id("PNP0A08")),
        name("_CID", eisa_id("PNP0A03")),
        name("_UID", integer(0)),
        name("_SEG", integer(0)),
        name("_BBN", integer(0)),
        name("_CRS", resources.template(*windows)),
        name("_PRT", package(*_interrupt_routes(board.pci_intx_gsis))),
        _osc(),
    )


def _interrupt_routes(gsis: tuple[int, int, int, int]) -> Iterator[bytes]:
    """One route for each slot and pin, swizzled; slot 0 is the host bridge, which has no pins."""
    for slot in range(1, PCI_SLOTS):
        for pin in range(PCI_PINS):
            address = slot << 16 | ANY_FUNCTION
            gsi = gsis[(slot + pin) % PCI_PINS]
            yield package(integer(address), integer(pin), integer(0), integer(gsi))


def _osc() -> bytes:
    """`_OSC` for PCI host bridges (PCI Firmware 3.3, 4.5.1): grants `OSC_GRANTED`, no hot-plug."""
    status, control = name_string("CDW1"), name_string("CDW3")
    refused = or_(status, integer(OSC_CAPABILITIES_MASKED), status)
    return method(
        "_OSC",
        4,
        create_dword_field(arg(3), 0, "CDW1"),
        if_(
            equal(arg(0), buffer(PCI_HOST_BRIDGE_UUID.bytes_le)),
            create_dword_field(arg(3), 8, "CDW3"),
            if_(
                not_(equal(and_(control, integer(0xFFFF_FFFF ^ OSC_GRANTED), b"\0"), integer(0))),
                refused,
            ),
            and_(control, integer(OSC_GRANTED), control),
            if_(
                not_(equal(arg(1), integer(1))),
                or_(status, integer(OSC_UNRECOGNIZED_REVISION), status),
            ),
        ),
        else_(or_(status, integer(OSC_UNRECOGNIZED_UUID), status)),
        return_(arg(3)),
        serialized=True,
    )


def _motherboard(board: Board) -> bytes:
    """Ranges no driver owns: the ECAM (an OS uses it only when reserved here), power."""
    return device(
        "MBRD",
        name("_HID", eisa_id("PNP0C02")),
        name("_UID", integer(0)),
        name(
            "_CRS",
            resources.template(
                resources.memory32(board.ecam.base, board.ecam.size),
                resources.io(board.pm_base, 0x0C),
            ),
        ),
    )


def _serial(uid: int, serial: SerialPort) -> bytes:
    return device(
        f"COM{uid}",
        name("_HID", eisa_id("PNP0501")),
        name("_UID", integer(uid)),
        name("_CRS", resources.template(resources.io(serial.port, 8), resources.irq(serial.irq))),
    )


def _rtc(irq: int) -> bytes:
    return device(
        "RTC",
        name("_HID", eisa_id("PNP0B00")),
        name("_CRS", resources.template(resources.io(0x70, 2), resources.irq(irq))),
    )


def _fw_cfg(port: int | None) -> Iterator[bytes]:
    if port is not None:
        yield device(
            "FWCF",
            name("_HID", string("QEMU0002")),
            name("_STA", integer(PRESENT_NOT_SHOWN)),
            name("_CRS", resources.template(resources.io(port, 12))),
        )


def _pvpanic(port: int | None) -> Iterator[bytes]:
    if port is not None:
        yield device(
            "PEVT",
            name("_HID", string("QEMU0001")),
            name("_STA", integer(PRESENT)),
            name("_CRS", resources.template(resources.io(port, 1))),
        )


def _vmgenid(gpa: int | None, irq: int) -> Iterator[bytes]:
    """Where the generation identifier lies, and the event device that says when it changes."""
    if gpa is not None:
        halves = (integer(gpa & 0xFFFF_FFFF), integer(gpa >> 32))
        yield device(
            "VGEN",
            name("_HID", string("OSTL0001")),
            name("_CID", string("VM_Gen_Counter")),
            name("_DDN", string("VM_Gen_Counter")),
            name("ADDR", package(*halves)),
        )
        changed = notify("VGEN", DEVICE_SPECIFIC)
        yield device(
            "GED",
            name("_HID", string("ACPI0013")),
            name("_UID", integer(0)),
            name("_CRS", resources.template(resources.edge_interrupt(irq))),
            method("_EVT", 1, if_(equal(arg(0), integer(irq)), changed), serialized=True),
        )


def _processors(count: int) -> Iterator[bytes]:
    """One device for each CPU; its `_UID` is the one in the MADT."""
    for uid in range(count):
        yield device(f"C{uid:03X}", name("_HID", string("ACPI0007")), name("_UID", integer(uid)))

"""The ACPI tables (ACPI 6.5, chapter 5): RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT, MCFG.

They go into the BIOS area as one piece that begins with the RSDP, where every OS looks for it.
Not modelled: HPET, NUMA tables, S3 and S4, general-purpose events.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ostler.errors import ConfigError
from ostler.firmware.acpi import dsdt
from ostler.firmware.acpi.board import Board

RSDP_GPA = 0xE_0000
AREA_BYTES = 0x2_0000

OEM_ID = b"OSTLER"
OEM_TABLE_ID = b"OSTLERVM"
CREATOR_ID = b"OSTL"
HEADER = struct.Struct("<4sIBB6s8sI4sI")
CHECKSUM_AT = 9

SYSTEM_IO = 1
BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 1, 2, 3
ENTERPRISE_SERVER = 4
CMOS_CENTURY = 0x32

FADT_WBINVD = 1 << 0
FADT_PROC_C1 = 1 << 2
# Set means: not as a fixed feature. The power button is one (bit 4 clear).
FADT_SLP_BUTTON = 1 << 5
FADT_FIX_RTC = 1 << 6
FADT_TMR_VAL_EXT = 1 << 8
FADT_RESET_REG_SUP = 1 << 10
BOOT_LEGACY_DEVICES = 1 << 0
BOOT_NO_VGA = 1 << 2
BOOT_NO_ASPM = 1 << 4
# C2 and C3 are there only with latencies up to 100 and 1000 us.
NO_C2_LATENCY, NO_C3_LATENCY = 101, 1001

MADT_PCAT_COMPAT = 1
MADT_ENABLED = 1
XAPIC_ID_LIMIT = 255
ALL_XAPIC, ALL_X2APIC = 0xFF, 0xFFFF_FFFF
PIT_IRQ, PIT_GSI = 0, 2
LEVEL_ACTIVE_HIGH = 0b1101
NMI_LINT = 1


def build_tables(board: Board, base_gpa: int = RSDP_GPA) -> bytes:
    """All tables as they are to lie at `base_gpa` (the RSDP's address, 64-byte aligned).

    `ConfigError` when the board has more CPUs than the 128 KiB of the BIOS area describe.
    """
    area = _Area(base_gpa, bytearray(64))
    facs = area.add(_facs())
    fadt = area.add(_fadt(board, facs, area.add(table(b"DSDT", 2, dsdt.namespace(board)))))
    pointed = [fadt, area.add(_madt(board)), area.add(_mcfg(board))]
    rsdt = area.add(table(b"RSDT", 1, struct.pack(f"<{len(pointed)}I", *pointed)))
    xsdt = area.add(table(b"XSDT", 1, struct.pack(f"<{len(pointed)}Q", *pointed)))
    area.blob[:36] = _rsdp(rsdt, xsdt)
    if len(area.blob) > AREA_BYTES:
        raise ConfigError(
            f"{len(board.apic_ids)} CPUs need {len(area.blob)} bytes of ACPI tables,"
            f" {AREA_BYTES} fit; give the guest fewer --cpus"
        )
    return bytes(area.blob)


class _Area:
    """Tables laid one after another from `base_gpa` on."""

    def __init__(self, base_gpa: int, blob: bytearray) -> None:
        self.base_gpa = base_gpa
        self.blob = blob

    def add(self, data: bytes) -> int:
        """Append `data` and return its address; 64-byte aligned, which the FACS must be."""
        self.blob.extend(bytes(-len(self.blob) % 64))
        gpa = self.base_gpa + len(self.blob)
        self.blob.extend(data)
        return gpa


def checksum(data: bytes | bytearray) -> int:
    """The byte that makes all bytes sum to 0 modulo 256."""
    return -sum(data) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the common header (5.2.6), then `body`."""
    length = HEADER.size + len(body)
    header = (signature, length, revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1)
    whole = bytearray(HEADER.pack(*header) + body)
    whole[CHECKSUM_AT] = checksum(whole)
    return bytes(whole)


def _rsdp(rsdt_gpa: int, xsdt_gpa: int) -> bytes:
    """Revision 2 (5.2.5.3): one checksum over the first 20 bytes, one over all 36."""
    rsdp = bytearray(
        struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, rsdt_gpa, 36, xsdt_gpa, 0)
    )
    rsdp[8] = checksum(rsdp[:20])
    rsdp[32] = checksum(rsdp)
    return bytes(rsdp)


def _facs() -> bytes:
    return struct.pack("<4sI24xB31x", b"FACS", 64, 2)


def _gas(port: int, size: int) -> bytes:
    """A generic address structure (5.2.3.2) for a port of `size` bytes; all zero for port 0."""
    access = {1: BYTE_ACCESS, 2: WORD_ACCESS, 4: DWORD_ACCESS}[size]
    return struct.pack("<BBBBQ", SYSTEM_IO, size * 8, 0, access, port) if port else bytes(12)


def _fadt(board: Board, facs_gpa: int, dsdt_gpa: int) -> bytes:
    """Revision 6.5 (5.2.9). SMI_CMD is 0: the board is always in ACPI mode."""
    event, control, timer = board.pm_base, board.pm_base + 4, board.pm_base + 8
    flags = (
        FADT_WBINVD | FADT_PROC_C1 | FADT_SLP_BUTTON | FADT_FIX_RTC | FADT_TMR_VAL_EXT
        | FADT_RESET_REG_SUP
    )  # fmt: skip
    body = struct.pack(
        "<IIxBHIBBBB", facs_gpa, dsdt_gpa, ENTERPRISE_SERVER, board.sci_irq, 0, 0, 0, 0, 0
    )
    body += struct.pack("<8I", event, 0, control, 0, 0, timer, 0, 0)
    body += struct.pack("<8B", 4, 2, 0, 4, 0, 0, 0, 0)
    body += struct.pack("<4H5B", NO_C2_LATENCY, NO_C3_LATENCY, 0, 0, 0, 0, 0, 0, CMOS_CENTURY)
    body += struct.pack("<HxI", BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_ASPM, flags)
    body += _gas(board.reset_port, 1) + struct.pack("<BHB", board.reset_value, 0, 5)
    # X_FIRMWARE_CTRL is 0: with both given, some systems map the FACS twice.
    body += struct.pack("<QQ", 0, dsdt_gpa)
    body += (
        _gas(event, 4) + _gas(0, 4) + _gas(control, 2) + _gas(0, 2) + _gas(0, 1) + _gas(timer, 4)
    )
    body += bytes(12 * 4) + OEM_TABLE_ID
    return table(b"FACP", 6, body)


def _madt(board: Board) -> bytes:
    entries = b"".join((*_local_apics(board), *_interrupt_inputs(board)))
    return table(b"APIC", 5, struct.pack("<II", board.lapic_gpa, MADT_PCAT_COMPAT) + entries)


def _local_apics(board: Board) -> Iterator[bytes]:
    """An entry for each CPU, in x2APIC form where an id does not fit the other (5.2.12.12)."""
    for uid, apic_id in enumerate(board.apic_ids):
        if apic_id < XAPIC_ID_LIMIT and uid < XAPIC_ID_LIMIT:
            yield struct.pack("<BBBBI", 0, 8, uid, apic_id, MADT_ENABLED)
        else:
            yield struct.pack("<BBHIII", 9, 16, 0, apic_id, MADT_ENABLED, uid)


def _interrupt_inputs(board: Board) -> Iterator[bytes]:
    yield struct.pack("<BBBBII", 1, 12, board.ioapic_id, 0, board.ioapic_gpa, 0)
    yield struct.pack("<BBBBIH", 2, 10, 0, PIT_IRQ, PIT_GSI, 0)
    yield struct.pack("<BBBBIH", 2, 10, 0, board.sci_irq, board.sci_irq, LEVEL_ACTIVE_HIGH)
    yield struct.pack("<BBBHB", 4, 6, ALL_XAPIC, 0, NMI_LINT)
    if max(board.apic_ids) >= XAPIC_ID_LIMIT:
        yield struct.pack("<BBHIB3x", 10, 12, 0, ALL_X2APIC, NMI_LINT)


def _mcfg(board: Board) -> bytes:
    """The ECAM of segment 0 (PCI Firmware 3.3, 4.1.2), 1 MiB for each bus."""
    buses = board.ecam.size >> 20
    return table(b"MCFG", 1, struct.pack("<8xQHBB4x", board.ecam.base, 0, 0, buses - 1))

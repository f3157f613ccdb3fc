"""Resource descriptors (ACPI 6.5, 6.4), the elements of a `_CRS` template."""

from __future__ import annotations

import struct

from ostler.firmware.acpi import aml

MEMORY, IO, BUS = 0, 1, 2
PRODUCER_FIXED = 0x0C
READ_WRITE = 1
CONSUMER, EDGE = 1 << 0, 1 << 1
ENTIRE_RANGE = 3
END_TAG = b"\x79\x00"


def template(*descriptors: bytes) -> bytes:
    """A resource template: the buffer of `descriptors` and an end tag (checksum 0: not checked)."""
    return aml.buffer(b"".join(descriptors) + END_TAG)


def io(port: int, count: int) -> bytes:
    """`count` fixed ports from `port` on, all 16 address bits decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, count)


def irq(number: int) -> bytes:
    """An edge-triggered, active-high, exclusive ISA interrupt (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << number)


def edge_interrupt(gsi: int) -> bytes:
    """An edge-triggered, active-high, exclusive interrupt by its GSI (6.4.3.6)."""
    return struct.pack("<BHBBI", 0x89, 6, CONSUMER | EDGE, 1, gsi)


def memory32(base: int, size: int) -> bytes:
    """A fixed, writable range below 4 GiB (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, READ_WRITE, base, size)


def bus_numbers(first: int, last: int) -> bytes:
    """The PCI buses a bridge produces (6.4.3.5.3)."""
    return _address_space(0x88, "H", BUS, 0, first, last)


def io_window(first: int, last: int) -> bytes:
    """Ports a bridge forwards (6.4.3.5.3)."""
    return _address_space(0x88, "H", IO, ENTIRE_RANGE, first, last)


def memory_window(first: int, last: int) -> bytes:
    """Uncached memory addresses a bridge forwards, 64-bit where they need it (6.4.3.5.1, .2)."""
    tag, width = (0x87, "I") if last < 1 << 32 else (0x8A, "Q")
    return _address_space(tag, width, MEMORY, READ_WRITE, first, last)


def _address_space(tag: int, width: str, kind: int, flags: int, first: int, last: int) -> bytes:
    numbers = struct.pack(f"<5{width}", 0, first, last, 0, last - first + 1)
    return struct.pack("<BHBBB", tag, 3 + len(numbers), kind, PRODUCER_FIXED, flags) + numbers

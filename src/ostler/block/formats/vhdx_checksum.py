"""CRC-32C (Castagnoli), with which VHDX seals its headers, tables and log (MS-VHDX 2.2)."""

from __future__ import annotations

_REVERSED_POLYNOMIAL = 0x82F63B78


def _row(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_REVERSED_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_row(byte) for byte in range(256))


def crc32c(content: bytes) -> int:
    """The checksum of `content`: 64 KiB take about 4 ms."""
    table, crc = _TABLE, 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def is_sealed(content: bytes, at: int = 4) -> bool:
    """Whether the four bytes at `at` are the checksum of the rest, with zeros in their place."""
    sealed = int.from_bytes(content[at : at + 4], "little")
    return crc32c(content[:at] + bytes(4) + content[at + 4 :]) == sealed

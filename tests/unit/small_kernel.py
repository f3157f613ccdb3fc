"""Kernels of a few instructions, for tests of everything around a guest."""

from __future__ import annotations

import struct
from pathlib import Path

HLT = bytes.fromhex("f4")
EXIT_1 = bytes.fromhex("31c0 66ba0105 ee f4")  # xor eax, eax; mov dx, 0x501; out dx, al; hlt
SPIN = bytes.fromhex("ebfe")  # jmp $
PRINT_Y_FOR_EVER = bytes.fromhex("66baf803 b079 ee ebfd")  # dx = 0x3f8, al = 'y'; out; jmp to out
SLEEP = bytes.fromhex("fa f4 ebfd")  # cli; hlt; jmp to the hlt


def small_kernel(code: bytes = HLT) -> bytes:
    """A 64-bit ELF of `code`, by default one HLT, at 1 MiB."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    program = struct.pack(
        "<IIQQQQQQ", 1, 5, 0x1000, 0x100000, 0x100000, len(code), len(code), 0x1000
    )
    return (ident + header + program).ljust(0x1000, b"\0") + code


def print_and_exit(count: int) -> bytes:
    """Code that prints `count` bytes and ends the machine by a debug-exit device."""
    loop = bytes.fromhex("ee ffc9 75fb")  # out dx, al; dec ecx; jnz to the out
    return b"\xb9" + struct.pack("<I", count) + bytes.fromhex("66baf803 b02e") + loop + EXIT_1


def write_kernel(path: Path, code: bytes) -> Path:
    """Put a kernel of `code` at `path`."""
    path.write_bytes(small_kernel(code))
    return path

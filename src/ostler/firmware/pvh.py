"""Xen's PVH direct boot: version 1 of `hvm_start_info` (xen/public/arch-x86/hvm/start_info.h)."""

from __future__ import annotations

import struct

from ostler.errors import KernelError
from ostler.firmware import elf, entry
from ostler.firmware.linux import cmdline_load
from ostler.firmware.plan import BootPlan, Handover, Load, check_loads, place_high

MAGIC = 0x336EC578
VERSION = 1
START_INFO = struct.Struct("<IIIIQQQQII")
MODULE = struct.Struct("<QQQQ")
MEMORY_ROW = struct.Struct("<QQII")


def load(image: memoryview, program: elf.Program, handover: Handover) -> BootPlan:
    """The plan for an ELF file with a PVH entry note."""
    if program.pvh_entry is None:
        raise KernelError("has no PVH entry note; use a kernel built with CONFIG_PVH")
    kernel = list(elf.loads(image, program))
    modules = _place_modules(kernel, handover)
    regs, sregs, tables = entry.protected_mode(program.pvh_entry, rbx=entry.INFO_GPA)
    cmdline = cmdline_load(handover.cmdline, entry.CMDLINE_END - entry.CMDLINE_GPA - 1)
    info = Load(entry.INFO_GPA, start_info(modules, handover), "the PVH start info")
    if info.end > entry.INFO_END:
        raise KernelError("cannot be told of so many modules and memory ranges; use fewer")
    loads = check_loads([*kernel, *tables, cmdline, info, *modules], handover.memory_map)
    return BootPlan("pvh", loads, regs, sregs)


def _place_modules(kernel: list[Load], handover: Handover) -> list[Load]:
    """All modules as high as they fit below 4 GiB, the first one highest."""
    kernel_end, below = max(load.end for load in kernel), 1 << 32
    placed = []
    for module in handover.modules:
        below = place_high(len(module.data), handover.memory_map, kernel_end, below, "the initrd")
        placed.append(Load(below, module.data, "the initrd"))
    return placed


def start_info(modules: list[Load], handover: Handover) -> bytes:
    """`hvm_start_info` for `entry.INFO_GPA`, then what it points at: memory map, module list."""
    rows_gpa = entry.INFO_GPA + START_INFO.size
    rows = b"".join(MEMORY_ROW.pack(row.base, row.size, row.kind, 0) for row in handover.memory_map)
    list_gpa = rows_gpa + len(rows)
    head = START_INFO.pack(
        MAGIC, VERSION, 0, len(modules), list_gpa if modules else 0, entry.CMDLINE_GPA,
        handover.rsdp_gpa, rows_gpa, len(handover.memory_map), 0,
    )  # fmt: skip
    return head + rows + b"".join(MODULE.pack(load.gpa, len(load.data), 0, 0) for load in modules)

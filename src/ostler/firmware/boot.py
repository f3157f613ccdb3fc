"""From a kernel file to a boot plan: recognizes the format and asks its loader.

In order: Linux's boot protocol (bzImage), ELF with a PVH note, multiboot 1, ELF with a 64-bit
entry point. A file packed with gzip as a whole (`xen.gz`) is unpacked first, as GRUB does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ostler.errors import KernelError
from ostler.firmware import elf, linux, multiboot, pvh, unpack
from ostler.firmware.plan import BootPlan, Handover, MemoryRange, Module
from ostler.firmware.source import Source, name_of, view


def load_kernel(
    kernel: Source,
    *,
    memory_map: Sequence[MemoryRange],
    cmdline: str = "",
    initrd: Source | None = None,
    modules: Sequence[Module] = (),
    rsdp_gpa: int = 0,
) -> BootPlan:
    """Plan the boot of `kernel`, a path or the bytes of a bzImage, ELF or multiboot image.

    `memory_map` is the E820 map in ascending order; `initrd` (a path or bytes) goes before
    `modules`, which multiboot and PVH kernels take too. `rsdp_gpa` is where the ACPI tables' RSDP
    will lie, 0 for none. Raises `KernelError`, one line with cause and cure. Big parts of the plan
    are views of the mapped file; a packed kernel is unpacked by whoever writes the plan to memory.
    """
    image = view(kernel, "kernel")
    given = [Module(view(initrd, "initrd")), *modules] if initrd is not None else list(modules)
    handover = Handover(memory_map, cmdline, given, rsdp_gpa)
    try:
        plan = _plan(unpack.unpack(image) if unpack.is_gzip(image) else image, handover)
        return replace(plan, kernel=name_of(kernel))
    except KernelError as error:
        raise KernelError(f"kernel {name_of(kernel)} {error}") from None


def _plan(image: memoryview, handover: Handover) -> BootPlan:
    if linux.is_linux(image):
        return linux.load(image, handover)
    program = elf.parse(image) if elf.is_elf(image) else None
    if program is not None and program.pvh_entry is not None:
        return pvh.load(image, program, handover)
    header = multiboot.find_header(image)
    if header is not None:
        return multiboot.load(image, header, program, handover)
    if program is not None and program.bits == 64:
        return linux.enter_64(
            linux.synthetic_header(), list(elf.loads(image, program)), program.entry, handover
        )
    if program is not None:
        raise KernelError(
            "is a 32-bit ELF file without PVH note or multiboot header; add one of them"
        )
    raise KernelError(
        "is not a kernel: neither bzImage, ELF nor multiboot; give a vmlinuz or a vmlinux"
    )

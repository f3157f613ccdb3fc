"""Linux's x86 boot protocol (Documentation/arch/x86/boot.rst): setup header, boot_params, entry.

A compressed vmlinux is unpacked here, on the host, and entered at its own 64-bit entry point. What
is not a compressed 64-bit ELF file (memtest86+, a 32-bit kernel, LZO) is loaded as it is and
entered at its 64-bit entry where it has one, else at `code32_start`. Not modelled: 16-bit setup
code (never run), EFI hand-over, zImage kernels that load below 1 MiB.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import NamedTuple, Self

from ostler.errors import KernelError
from ostler.firmware import elf, entry, unpack
from ostler.firmware.plan import BootPlan, Handover, Load, Part, check_loads, place_high

HEADER_OFFSET = 0x1F1
HEADER_FORMAT = struct.Struct("<BHIHHH2s2s4sHIHHBBHIIIIHBBIIIBBHIIQIIQQIII")
BOOT_FLAG = b"\x55\xaa"
MAGIC = b"HdrS"
OLDEST_VERSION = 0x0202
SECTOR = 512

LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
LOADER_UNDEFINED = 0xFF
LOAD_GPA = 0x10_0000
ENTRY_64_OFFSET = 0x200

BOOT_PARAMS_GPA = entry.INFO_GPA
BOOT_PARAMS_BYTES = 0x1000
ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
E820_TABLE = 0x2D0
E820_MAX = 128

# Before protocol 2.03 and 2.06 the header did not say; boot.rst gives these.
OLD_INITRD_ADDR_MAX = 0x37FF_FFFF
OLD_CMDLINE_SIZE = 255


class SetupHeader(NamedTuple):
    """`struct setup_header`; fields a kernel's protocol version lacks are zero."""

    setup_sects: int
    root_flags: int
    syssize: int
    ram_size: int
    vid_mode: int
    root_dev: int
    boot_flag: bytes
    jump: bytes
    header: bytes
    version: int
    realmode_swtch: int
    start_sys_seg: int
    kernel_version: int
    type_of_loader: int
    loadflags: int
    setup_move_size: int
    code32_start: int
    ramdisk_image: int
    ramdisk_size: int
    bootsect_kludge: int
    heap_end_ptr: int
    ext_loader_ver: int
    ext_loader_type: int
    cmd_line_ptr: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable_kernel: int
    min_alignment: int
    xloadflags: int
    cmdline_size: int
    hardware_subarch: int
    hardware_subarch_data: int
    payload_offset: int
    payload_length: int
    setup_data: int
    pref_address: int
    init_size: int
    handover_offset: int
    kernel_info_offset: int

    @classmethod
    def parse(cls, image: memoryview) -> Self:
        """The header of a bzImage; `KernelError` when cut short or of a kind we cannot enter."""
        if len(image) < 0x202 + 64:
            raise KernelError(
                f"is truncated ({len(image)} bytes, inside the setup header); fetch it again"
            )
        end = min(0x202 + image[0x201], HEADER_OFFSET + HEADER_FORMAT.size)
        raw = bytes(image[HEADER_OFFSET:end]).ljust(HEADER_FORMAT.size, b"\0")
        header = cls(*HEADER_FORMAT.unpack(raw))
        header.check(len(image))
        return header

    def check(self, image_bytes: int) -> None:
        """Raise `KernelError` for what boot.rst does not allow or this loader cannot enter."""
        if self.version < OLDEST_VERSION:
            version = f"{self.version >> 8}.{self.version & 0xFF:02}"
            raise KernelError(
                f"has boot protocol {version}, older than 2.02; use a kernel from 2.4 on"
            )
        if not self.loadflags & LOADED_HIGH:
            raise KernelError("is a zImage, which loads below 1 MiB; build it as bzImage")
        # syssize counts 16-byte units, and not every build pads the last one.
        wanted = self.setup_bytes + self.syssize * 16 - 15
        if image_bytes < wanted or image_bytes <= self.setup_bytes:
            raise KernelError(
                f"is truncated: {image_bytes} bytes, its header promises {wanted}; fetch it again"
            )

    @property
    def setup_bytes(self) -> int:
        """Where the protected-mode code starts in the file; 0 sectors stands for 4."""
        return ((self.setup_sects or 4) + 1) * SECTOR

    @property
    def cmdline_max(self) -> int:
        """Longest command line in bytes, without the final NUL."""
        return (
            self.cmdline_size if self.version >= 0x0206 and self.cmdline_size else OLD_CMDLINE_SIZE
        )

    @property
    def initrd_end_max(self) -> int:
        """The address the initrd must not reach past."""
        return (self.initrd_addr_max if self.version >= 0x0203 else OLD_INITRD_ADDR_MAX) + 1


def is_linux(image: memoryview) -> bool:
    """Whether the image says it follows the boot protocol."""
    return bytes(image[0x1FE:0x200]) == BOOT_FLAG and bytes(image[0x202:0x206]) == MAGIC


def load(image: memoryview, handover: Handover) -> BootPlan:
    """The plan for a bzImage; `KernelError` when it is damaged or does not fit."""
    header = SetupHeader.parse(image)
    vmlinux = _payload(image, header)
    if vmlinux is not None:
        program = elf.parse(vmlinux.head, vmlinux.size)
        kernel = list(elf.segments(program, partial(Part, vmlinux)))
        return enter_64(header, kernel, program.entry, handover)
    kernel = [_as_is(image, header)]
    if header.xloadflags & XLF_KERNEL_64:
        return enter_64(header, kernel, LOAD_GPA + ENTRY_64_OFFSET, handover)
    regs, sregs, tables = entry.protected_mode(header.code32_start, rsi=BOOT_PARAMS_GPA)
    loads = [*kernel, *tables, *_parameters(header, kernel, handover)]
    return BootPlan("linux32", check_loads(loads, handover.memory_map), regs, sregs)


def enter_64(header: SetupHeader, kernel: list[Load], start: int, handover: Handover) -> BootPlan:
    """The plan for a kernel whose parts are `kernel` and whose 64-bit entry point is `start`."""
    regs, sregs, tables = entry.long_mode(start, rsi=BOOT_PARAMS_GPA)
    loads = [*kernel, *tables, *_parameters(header, kernel, handover)]
    return BootPlan("linux64", check_loads(loads, handover.memory_map), regs, sregs)


def synthetic_header() -> SetupHeader:
    """The header for a vmlinux that came without one (an uncompressed ELF file)."""
    zeros = SetupHeader(*HEADER_FORMAT.unpack(bytes(HEADER_FORMAT.size)))
    return zeros._replace(
        boot_flag=BOOT_FLAG, header=MAGIC, version=0x020F, loadflags=LOADED_HIGH,
        initrd_addr_max=0x7FFF_FFFF, cmdline_size=2047, kernel_alignment=0x100_0000,
    )  # fmt: skip


def _payload(image: memoryview, header: SetupHeader) -> unpack.Packed | None:
    """The kernel proper as a 64-bit ELF file, or None where only its own code can unpack it."""
    if header.version < 0x0208 or not header.payload_length:
        return None
    start = header.setup_bytes + header.payload_offset
    end = start + header.payload_length
    if end > len(image):
        raise KernelError(
            f"is truncated: its payload ends at {end} of {len(image)} bytes; fetch it again"
        )
    payload = image[start:end]
    if not unpack.can_unpack(payload):
        return None
    vmlinux = unpack.Packed(payload)
    return vmlinux if elf.is_elf64(vmlinux.head) else None


def _as_is(image: memoryview, header: SetupHeader) -> Load:
    code = image[header.setup_bytes :]
    needed = header.init_size if header.version >= 0x020A else 0
    return Load(LOAD_GPA, code, "the kernel", max(0, needed - len(code)))


def _parameters(header: SetupHeader, kernel: list[Load], handover: Handover) -> list[Load]:
    """boot_params, command line and initrd."""
    loads = [cmdline_load(handover.cmdline, header.cmdline_max)]
    filled = header._replace(
        type_of_loader=LOADER_UNDEFINED,
        cmd_line_ptr=entry.CMDLINE_GPA,
        vid_mode=0xFFFF,
        setup_data=0,
    )
    if handover.modules:
        initrd = handover.modules[0].data
        kernel_end = max(load.end for load in kernel)
        # Code that unpacks itself does so at its preferred address.
        kernel_end = max(kernel_end, header.pref_address + header.init_size)
        gpa = place_high(
            len(initrd), handover.memory_map, kernel_end, header.initrd_end_max, "the initrd"
        )
        loads.append(Load(gpa, initrd, "the initrd"))
        filled = filled._replace(ramdisk_image=gpa, ramdisk_size=len(initrd))
    return [*loads, Load(BOOT_PARAMS_GPA, boot_params(filled, handover), "the boot parameters")]


def boot_params(header: SetupHeader, handover: Handover) -> bytes:
    """`struct boot_params`: the zero page, with E820 map and RSDP address."""
    rows = handover.memory_map
    if len(rows) > E820_MAX:
        raise KernelError(f"takes {E820_MAX} memory ranges, the machine has {len(rows)}; use fewer")
    page = bytearray(BOOT_PARAMS_BYTES)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, handover.rsdp_gpa)
    page[E820_ENTRIES] = len(rows)
    HEADER_FORMAT.pack_into(page, HEADER_OFFSET, *header)
    for index, row in enumerate(rows):
        struct.pack_into("<QQI", page, E820_TABLE + 20 * index, row.base, row.size, row.kind)
    return bytes(page)


def cmdline_load(cmdline: str, longest: int) -> Load:
    """The command line at its place, NUL-terminated; `KernelError` when it is too long."""
    raw = cmdline.encode("utf-8", "surrogateescape")
    if len(raw) > longest:
        raise KernelError(
            f"takes a command line of {longest} bytes, --append has {len(raw)}; shorten it"
        )
    if b"\0" in raw:
        raise KernelError("cannot take a NUL byte in the command line; remove it from --append")
    return Load(entry.CMDLINE_GPA, raw + b"\0", "the command line")

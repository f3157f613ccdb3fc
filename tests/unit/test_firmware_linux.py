"""The Linux boot protocol: header, boot_params, placement, and images that are not quite right."""

from __future__ import annotations

import gzip
import random
import struct
from typing import Any

import pytest
from firmware_images import BZIMAGE_HEADER, KERNEL_GPA, MEMORY_MAP, MIB, RAM_BYTES, bzimage, elf64
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.errors import KernelError
from ostler.firmware import linux
from ostler.firmware.boot import load_kernel
from ostler.firmware.plan import BootPlan, Load, MemoryRange

INITRD = b"initrd" * 1000
VMLINUX = elf64([(KERNEL_GPA, b"\x90" * 4000, 5000), (KERNEL_GPA + MIB, b"data", MIB)])
STOCK = bzimage(gzip.compress(VMLINUX))


def load(image: bytes, **options: object) -> BootPlan:
    return load_kernel(image, **{"memory_map": MEMORY_MAP, **options})  # type: ignore[arg-type]


def named(plan: BootPlan, what: str) -> Load:
    (found,) = (load for load in plan.loads if load.what == what)
    return found


def params(plan: BootPlan) -> tuple[bytes, linux.SetupHeader]:
    page = bytes(named(plan, "the boot parameters").data)
    return page, linux.SetupHeader(*linux.HEADER_FORMAT.unpack_from(page, linux.HEADER_OFFSET))


def test_bzimage_compressed_elf_is_entered_at_its_own_64_bit_entry() -> None:
    plan = load(STOCK)
    assert plan.protocol == "linux64"
    assert plan.regs.rip == KERNEL_GPA
    assert plan.regs.rsi == named(plan, "the boot parameters").gpa
    text, data = (load for load in plan.loads if load.what == "a kernel segment")
    assert (text.gpa, bytes(text.data), text.zero_bytes) == (KERNEL_GPA, b"\x90" * 4000, 1000)
    assert (data.gpa, bytes(data.data), data.zero_bytes) == (KERNEL_GPA + MIB, b"data", MIB - 4)


def test_boot_params_hold_header_map_command_line_initrd_and_rsdp() -> None:
    plan = load(STOCK, cmdline="console=ttyS0", initrd=INITRD, rsdp_gpa=0xE0000)
    page, header = params(plan)
    assert len(page) == 4096
    assert (header.boot_flag, header.header, header.version) == (b"\x55\xaa", b"HdrS", 0x20F)
    assert header.type_of_loader == 0xFF
    cmdline, initrd = named(plan, "the command line"), named(plan, "the initrd")
    assert (header.cmd_line_ptr, bytes(cmdline.data)) == (cmdline.gpa, b"console=ttyS0\0")
    assert (header.ramdisk_image, header.ramdisk_size) == (initrd.gpa, len(INITRD))
    assert bytes(initrd.data) == INITRD
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
    rows = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * n) for n in range(page[0x1E8])]
    assert rows == [(row.base, row.size, row.kind) for row in MEMORY_MAP]
    assert page[0x1EF] == 0, "the sentinel, or Linux takes the page for garbage"


def test_initrd_is_placed_at_the_highest_page_of_ram() -> None:
    initrd = named(load(STOCK, initrd=INITRD), "the initrd")
    assert initrd.gpa % 4096 == 0
    assert RAM_BYTES - 4096 < initrd.end <= RAM_BYTES


def test_initrd_with_much_ram_stays_below_initrd_addr_max() -> None:
    much = (*MEMORY_MAP[:2], MemoryRange(MIB, 0xC000_0000 - MIB), MemoryRange(1 << 32, 1 << 40))
    initrd = named(load(STOCK, initrd=INITRD, memory_map=much), "the initrd")
    assert 0x7FFF_0000 < initrd.end <= 0x8000_0000


def test_initrd_larger_than_what_is_left_is_refused_with_a_cure() -> None:
    with pytest.raises(
        KernelError, match=r"^kernel .+ cannot be loaded: the initrd of .+ does not fit.+--memory"
    ):
        load(STOCK, initrd=bytes(RAM_BYTES - KERNEL_GPA - MIB))


def test_kernel_larger_than_ram_is_refused_with_a_cure() -> None:
    small = (*MEMORY_MAP[:2], MemoryRange(MIB, 15 * MIB))
    with pytest.raises(KernelError, match="not within the guest's RAM; give the guest more --mem"):
        load(STOCK, memory_map=small)


def test_bzimage_without_payload_runs_its_own_64_bit_code() -> None:
    plan = load(bzimage(code=b"\x90" * 2048))
    kernel = named(plan, "the kernel")
    assert plan.regs.rip == linux.LOAD_GPA + 0x200
    assert (kernel.gpa, len(kernel.data), kernel.end) == (MIB, 2048, 3 * MIB)
    assert plan.sregs.efer == 0x500


def test_bzimage_for_32_bits_enters_code32_start_in_protected_mode() -> None:
    plan = load(bzimage(code=b"\x90" * 2048, xloadflags=0))
    assert plan.protocol == "linux32"
    assert (plan.regs.rip, plan.regs.rbx, plan.regs.rdi, plan.regs.rbp) == (MIB, 0, 0, 0)
    assert plan.regs.rsi == named(plan, "the boot parameters").gpa
    assert plan.sregs.cr0 == 0x11
    assert (plan.sregs.cs.selector, plan.sregs.ss.selector) == (0x10, 0x18)


def test_bzimage_of_a_32_bit_kernel_unpacks_itself() -> None:
    payload = gzip.compress(b"\x7fELF\x01" + bytes(100))
    assert load(bzimage(payload, xloadflags=0)).protocol == "linux32"


def test_bzimage_with_unknown_compression_unpacks_itself_where_the_initrd_is_not() -> None:
    plan = load(bzimage(b"\x89LZO" + bytes(1000), init_size=200 * MIB), initrd=INITRD)
    assert named(plan, "the initrd").gpa >= KERNEL_GPA + 200 * MIB


def test_header_of_an_old_protocol_reads_missing_fields_as_zero() -> None:
    old = bzimage(code=b"\x90" * 2048, version=0x0203, jump=b"\xeb\x2e", cmdline_size=99)
    header = linux.SetupHeader.parse(memoryview(old))
    assert (header.cmdline_size, header.cmdline_max, header.xloadflags) == (0, 255, 0)
    assert header.initrd_end_max == 0x8000_0000


def test_header_round_trips_every_field() -> None:
    image = memoryview(bzimage(setup_sects=3))
    header = linux.SetupHeader.parse(image)
    assert header._asdict().items() >= {**BZIMAGE_HEADER, "setup_sects": 3}.items()
    assert header.setup_bytes == 2048


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"version": 0x0201}, "boot protocol 2.01, older than 2.02"),
        ({"loadflags": 0}, "zImage"),
        ({"syssize": 1 << 20}, "truncated"),
        ({"setup_sects": 60, "syssize": 1 << 20}, "truncated"),
    ],
)
def test_header_that_cannot_be_booted_says_why(fields: dict[str, Any], cause: str) -> None:
    with pytest.raises(KernelError, match=cause):
        load(bzimage(gzip.compress(VMLINUX), **fields))


@pytest.mark.parametrize(
    ("cmdline", "cause"), [("x" * 2048, "2047 bytes, --append has 2048"), ("a\0b", "NUL")]
)
def test_command_line_the_kernel_cannot_take_is_refused(cmdline: str, cause: str) -> None:
    with pytest.raises(KernelError, match=cause):
        load(STOCK, cmdline=cmdline)


def test_command_line_of_the_longest_length_is_taken() -> None:
    assert len(named(load(STOCK, cmdline="x" * 2047), "the command line").data) == 2048


def test_payload_larger_than_the_file_is_truncated() -> None:
    with pytest.raises(KernelError, match="truncated: its payload ends"):
        load(bzimage(gzip.compress(VMLINUX), payload_length=1 << 30))


# The last 15 bytes may be padding, whose loss does not matter.
@given(st.integers(0, len(STOCK) - 16))
def test_bzimage_truncated_anywhere_is_a_kernel_error_of_one_line(length: int) -> None:
    with pytest.raises(KernelError) as caught:
        load(STOCK[:length])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("kernel the image ")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_bzimage_with_damaged_bytes_loads_within_ram_or_is_a_kernel_error(seed: int) -> None:
    rng = random.Random(seed)
    image = bytearray(STOCK)
    for _ in range(rng.randrange(1, 8)):
        image[rng.randrange(0x1F1, 0x280)] = rng.randrange(256)
    try:
        plan = load(bytes(image), initrd=INITRD)
    except KernelError:
        return
    assert all(part.end <= RAM_BYTES for part in plan.loads)

"""Guests of a few bytes, in real mode, for the tests of the engine."""

from __future__ import annotations

import os
import queue
from dataclasses import replace
from typing import NoReturn

import pytest

from ostler.engine import Segment, Vcpu, VirtualMachine

ENTRY = 0x1000
RAM_BYTES = 0x10000

OUT = bytes.fromhex("e610")  # out 0x10, al
IN = bytes.fromhex("e410")  # in al, 0x10
HLT = bytes.fromhex("f4")  # hlt
SPIN = bytes.fromhex("ebfe")  # jmp $
UD2 = bytes.fromhex("0f0b")  # ud2: a triple fault where there is no IDT

# What `machine` makes machines of; the fixture of the same name sets it.
accelerator = "soft"
split_irqchip = False


def machine() -> VirtualMachine:
    """A VM of the accelerator under test."""
    return VirtualMachine(accelerator, split_irqchip=split_irqchip)


def lacks(what: str) -> NoReturn:
    """Skip the test: this host's KVM `what`. The lab's, which is the real one, must not."""
    if "OSTLER_LAB" in os.environ:
        pytest.fail(f"the lab's KVM {what}")
    pytest.skip(f"this host's KVM {what}")


def enter_real_mode(vcpu: Vcpu, rip: int = ENTRY) -> None:
    """Let `vcpu` start at linear address `rip`, with flat segments and without an IDT."""
    sregs = vcpu.sregs
    sregs.cs.base = sregs.cs.selector = 0
    sregs.idt.limit = 0
    vcpu.sregs = sregs
    vcpu.set_regs(rip=rip, rflags=2)


def enter_user_mode(vm: VirtualMachine, vcpu: Vcpu, rip: int = ENTRY) -> None:
    """Let `vcpu` start at `rip` in 64-bit user mode, which may use ports; the first GiB is mapped.

    User mode is the CPU's own also where KVM emulates kernel mode. The tables take 0x8000-0xafff.
    """
    present_writable_user, large = 7, 1 << 7
    for table, entries in (
        (0x8000, [0x9000 | present_writable_user]),
        (0x9000, [0xA000 | present_writable_user]),
        (0xA000, [page << 21 | large | present_writable_user for page in range(512)]),
    ):
        vm.memory.write(table, b"".join(entry.to_bytes(8, "little") for entry in entries))
    flat = Segment(limit=0xFFFF_FFFF, present=True, dpl=3, s=True, g=True)
    sregs = vcpu.sregs
    sregs.cs = replace(flat, selector=0x33, kind=0xB, l=True)
    sregs.ss = sregs.ds = sregs.es = replace(flat, selector=0x2B, kind=3, db=True)
    sregs.tr = Segment(limit=103, selector=0x40, kind=0xB, present=True)
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x8000_0033, 0x8000, 0x20, 0x501
    vcpu.sregs = sregs
    vcpu.set_regs(rip=rip, rflags=3 << 12 | 2)


def guest(code: bytes, *, open_bus: bool = False) -> tuple[VirtualMachine, Vcpu]:
    """A VM with 64 KiB of memory whose one vCPU starts at `code`."""
    vm = machine()
    vm.bus.open_bus = open_bus
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    vm.memory.write(ENTRY, code)
    vcpu = vm.create_vcpu(0)
    enter_real_mode(vcpu)
    return vm, vcpu


class Register:
    """A device of one byte that remembers every access."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("read", offset, size))
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("write", offset, size))
        self.value = value


class Mailbox(Register):
    """A port that hands over what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: queue.Queue[int] = queue.Queue()

    def write(self, offset: int, size: int, value: int) -> None:
        self.queue.put(value)

    def get(self, timeout: float = 60.0) -> int:
        """The next value; `queue.Empty` where none comes within `timeout` seconds."""
        return self.queue.get(timeout=timeout)

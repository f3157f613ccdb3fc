"""Guests of a few bytes, in real mode, for the tests of the engine."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from ostler.engine import Vcpu, VirtualMachine

ENTRY = 0x1000
RAM_BYTES = 0x10000

OUT = bytes.fromhex("e610")  # out 0x10, al
IN = bytes.fromhex("e410")  # in al, 0x10
HLT = bytes.fromhex("f4")  # hlt
SPIN = bytes.fromhex("ebfe")  # jmp $
UD2 = bytes.fromhex("0f0b")  # ud2: a triple fault where there is no IDT

# What `machine` makes machines of; the fixture of the same name sets it.
accelerator = "soft"


def machine() -> VirtualMachine:
    """A VM of the accelerator under test."""
    return VirtualMachine(accelerator)


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

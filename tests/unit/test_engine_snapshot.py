"""Registers and memory taken under one accelerator and loaded under the other."""

from __future__ import annotations

import pytest
from engine_guest import ENTRY, RAM_BYTES, enter_real_mode, lacks

from ostler.engine import Hlt, Interrupted, IoOut, Vcpu, VirtualMachine, XsaveArea
from ostler.errors import HostError, StateError

# fib: add ax, bx; xchg ax, bx; mov al, bl; out 0x10, al; mov [0x5000], al; dec cx; jnz fib; hlt
CODE = bytes.fromhex("01d8 93 88d8 e610 a20050 49 75f3 f4")
ROUNDS = 12
XSAVE_HEADER, XSAVE_END = 512, 832  # where the header is, and where AVX ends


def new(accelerator: str) -> tuple[VirtualMachine, Vcpu]:
    try:
        vm = VirtualMachine(accelerator)
    except HostError as error:
        lacks(f"cannot be used: {error}")
    vm.bus.open_bus = False
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    return vm, vm.create_vcpu(0)


def said_until_hlt(vcpu: Vcpu) -> list[int]:
    """What the guest writes to its port until it halts."""
    said = []
    while isinstance(exit_ := vcpu.run(), IoOut):
        said.append(exit_.value)
    assert exit_ == Hlt()
    return said


def portable(area: XsaveArea) -> XsaveArea:
    """The image without the components past AVX, all of which are as after reset."""
    image = bytearray(area.data)
    assert not any(image[XSAVE_END:])
    image[XSAVE_HEADER : XSAVE_HEADER + 8] = bytes([image[XSAVE_HEADER] & 7, *bytes(7)])
    return XsaveArea(bytes(image[:XSAVE_END]))


def move(source: tuple[VirtualMachine, Vcpu], accelerator: str) -> tuple[VirtualMachine, Vcpu]:
    """A machine of `accelerator` with everything that `source` has."""
    (old_vm, old), (vm, vcpu) = source, new(accelerator)
    old.kick()  # finishes the instruction whose access was the last exit
    assert old.run() == Interrupted()
    vm.memory.write(0, old_vm.memory.read(0, RAM_BYTES))
    common = {row: value for row, value in old.msrs().items() if row in vcpu.msrs()}
    vcpu.sregs, vcpu.regs = old.sregs, old.regs
    for index, value in common.items():
        try:
            vcpu.set_msr(index, value)
        except StateError:
            # What one kind of CPU has fixed, another need not take; the guest uses none of it.
            assert vcpu.msr(index) is not None
    vcpu.xcrs, vcpu.xsave = old.xcrs, portable(old.xsave)
    vcpu.debug_regs, vcpu.events, vcpu.mp_state = old.debug_regs, old.events, old.mp_state
    vm.clock.set_ns(old_vm.clock.now_ns())
    return vm, vcpu


@pytest.mark.parametrize(("first", "second"), [("kvm", "soft"), ("soft", "kvm")])
def test_guest_goes_on_under_the_other_accelerator(first: str, second: str) -> None:
    def started(accelerator: str) -> tuple[VirtualMachine, Vcpu]:
        vm, vcpu = new(accelerator)
        vm.memory.write(ENTRY, CODE)
        enter_real_mode(vcpu)
        vcpu.set_regs(rax=0, rbx=1, rcx=ROUNDS)
        return vm, vcpu

    whole = said_until_hlt(started("soft")[1])
    assert len(whole) == ROUNDS
    source = started(first)
    part = []
    for _ in range(5):
        exit_ = source[1].run()
        assert isinstance(exit_, IoOut)
        part.append(exit_.value)
    vm, vcpu = move(source, second)
    assert vcpu.regs == source[1].regs
    assert part + said_until_hlt(vcpu) == whole
    assert vm.memory.read(0x5000, 1)[0] == whole[-1]

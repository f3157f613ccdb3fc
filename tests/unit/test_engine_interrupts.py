"""Interrupts, logs and many vCPUs: what a small guest sees of them on each accelerator."""

from __future__ import annotations

import pytest
from engine_guest import (
    ENTRY,
    HLT,
    OUT,
    RAM_BYTES,
    SPIN,
    Mailbox,
    Register,
    enter_real_mode,
    guest,
    machine,
)

from ostler.engine import DescriptorTable, Exit, Hlt, LapicState, Vcpu, VirtualMachine

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("irqchip")

VECTOR = 0x51
HANDLER = 0x2000
SPURIOUS, ENABLED = 0xF0, 0x1FF


def enable(lapic: LapicState) -> LapicState:
    """The same local APIC, enabled by its spurious-interrupt register."""
    regs = bytearray(lapic.regs)
    regs[SPURIOUS : SPURIOUS + 4] = ENABLED.to_bytes(4, "little")
    return LapicState(bytes(regs))


def waiting_guest() -> tuple[VirtualMachine, Vcpu, Mailbox]:
    """A guest that says 1, waits for interrupts, and says 0x77 at each `VECTOR`."""
    vm = machine()
    vm.create_irqchip()
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    vm.bus.add("pio", 0x10, 1, mailbox := Mailbox())
    say_and_wait = bytes.fromhex("b001") + OUT + bytes.fromhex("fbf4ebfc")  # sti; hlt; jmp sti
    vm.memory.write(ENTRY, say_and_wait)
    vm.memory.write(4 * VECTOR, HANDLER.to_bytes(4, "little"))
    # mov al, 0x77; out; iret. There is no EOI: the vector is taken once.
    vm.memory.write(HANDLER, bytes.fromhex("b077") + OUT + bytes.fromhex("cf"))
    vcpu = vm.create_vcpu(0)
    enter_real_mode(vcpu)
    vcpu.set_sregs(idt=DescriptorTable(limit=0x3FF))
    vcpu.set_regs(rsp=0x8000)
    vcpu.lapic = enable(vcpu.lapic)
    return vm, vcpu, mailbox


def ignore(_vcpu: int, _exit: Exit) -> None:
    """Nothing is expected to leave the guest."""


def test_message_wakes_a_halted_guest() -> None:
    vm, vcpu, mailbox = waiting_guest()
    route = vm.msi_route()
    route.update(0xFEE0_0000, VECTOR)
    route.masked = False
    threads = vm.start([vcpu], ignore)
    assert mailbox.get() == 1
    route.signal()
    assert mailbox.get() == 0x77
    threads.stop()


def test_message_masked_is_delivered_when_the_mask_goes() -> None:
    vm, vcpu, mailbox = waiting_guest()
    route = vm.msi_route()
    route.update(0xFEE0_0000, VECTOR)
    threads = vm.start([vcpu], ignore)
    assert mailbox.get() == 1
    route.signal()
    assert route.pending
    route.masked = False
    assert mailbox.get() == 0x77
    threads.stop()


def test_dirty_log_has_exactly_the_pages_that_the_guest_wrote() -> None:
    # inc byte [0x5000]; inc byte [0xe000]; hlt; inc byte [0x6000]; hlt
    vm, vcpu = guest(bytes.fromhex("fe060050 fe0600e0") + HLT + bytes.fromhex("fe060060") + HLT)
    # KVM logs a page, too, when it first maps it for reading: the pages have to be mapped before.
    assert vcpu.run() == vcpu.run() == Hlt()
    vcpu.set_regs(rip=ENTRY)
    vm.memory.set_dirty_log(0, True)
    assert vcpu.run() == Hlt()
    assert vm.memory.dirty_log(0) == (1 << 0x5 | 1 << 0xE).to_bytes(8, "little")
    assert vcpu.run() == Hlt()
    assert vm.memory.dirty_log(0) == (1 << 0x6).to_bytes(8, "little")
    vm.memory.write(0x3000, b"x")
    assert vm.memory.dirty_log(0) == (1 << 0x3).to_bytes(8, "little")


def test_slot_read_only_turns_guest_writes_into_exits_and_keeps_its_bytes() -> None:
    vm, vcpu = guest(bytes.fromhex("b05aa200f0") + HLT)  # mov al, 0x5a; mov [0xf000], al
    vm.memory.add_slot(1, gpa=0x2_0000, size=0x1000, read_only=True)
    sregs = vcpu.sregs
    sregs.ds.base = 0x1_1000  # [0xf000] is 0x20000
    vcpu.sregs = sregs
    vm.bus.add("mmio", 0x2_0000, 1, device := Register())
    assert vcpu.run() == Hlt()
    assert device.value == 0x5A
    assert vm.memory.read(0x2_0000, 1) == b"\0"


def test_three_hundred_vcpus_are_created_and_know_their_numbers() -> None:
    vm = machine()
    vm.create_irqchip()
    vcpus = [vm.create_vcpu(number) for number in range(300)]
    assert [vcpu.id for vcpu in vcpus] == list(range(300))
    for number in (0, 1, 255, 256, 299):
        rows = [row for row in vcpus[number].cpuid if row.function == 0xB]
        assert rows
        assert all(row.edx == number for row in rows)


def test_vcpu_spinning_is_paused_while_its_slot_is_replaced() -> None:
    vm, vcpu = guest(SPIN)
    threads = vm.start([vcpu], ignore)
    vm.memory.add_slot(1, gpa=0x10_0000, size=0x2000)
    vm.memory.add_slot(1, gpa=0x10_0000, size=0x1000)
    threads.stop()
    assert vcpu.regs.rip == ENTRY

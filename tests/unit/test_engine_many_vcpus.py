"""A guest of more vCPUs than an xAPIC can number: x2APIC starts them and reaches them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from engine_guest import ENTRY, RAM_BYTES, Mailbox, enter_real_mode, machine

from ostler.engine import Exit

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")

PATIENCE_S = 300.0
VCPUS = 272
# To those that are started, which are in xAPIC mode until they say otherwise, 255 is everyone.
FIRST = 256
STARTUP_PAGE = 2
X2APIC_ENABLED = 0xC00

# mov ebx, FIRST; next: mov ecx, 0x830 (ICR); mov edx, ebx; mov eax, 0x4500 (INIT); wrmsr;
# mov eax, 0x4602 (SIPI to page 2); wrmsr; inc ebx; cmp ebx, VCPUS; jb next; hlt; jmp hlt
START_ALL = (
    bytes.fromhex("66bb")
    + FIRST.to_bytes(4, "little")
    + bytes.fromhex("66b930080000 6689da 66b800450000 0f30 66b802460000 0f30 6643 6681fb")
    + VCPUS.to_bytes(4, "little")
    + bytes.fromhex("72dc f4 ebfd")
)
# mov eax, 0xb; xor ecx, ecx; cpuid (EDX: x2APIC id); mov eax, edx; out 0x10, eax; hlt; jmp hlt
SAY_ID = bytes.fromhex("66b80b000000 6631c9 0fa2 6689d0 66e710 f4 ebfd")


# Prints by how many bytes a vCPU makes the process larger.
GROWTH = """
import resource
from ostler.engine import VirtualMachine
def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()
vm = VirtualMachine("soft")
before = resident()
vcpus = [vm.create_vcpu(number) for number in range(64)]
print((resident() - before) // len(vcpus))
"""


def test_more_than_255_vcpus_are_started_by_x2apic_and_know_who_they_are() -> None:
    vm = machine()
    vm.create_irqchip()
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    vm.memory.write(ENTRY, START_ALL)
    vm.memory.write(STARTUP_PAGE << 12, SAY_ID)
    vm.bus.add("pio", 0x10, 4, mailbox := Mailbox())
    vcpus = [vm.create_vcpu(number) for number in range(VCPUS)]
    enter_real_mode(vcpus[0])
    vcpus[0].set_sregs(apic_base=vcpus[0].sregs.apic_base | X2APIC_ENABLED)

    def ignore(_vcpu: int, _exit: Exit) -> None:
        """Nothing is expected to leave the guest."""

    threads = vm.start(vcpus, ignore)
    said = [mailbox.get(PATIENCE_S) for _ in range(FIRST, VCPUS)]
    assert sorted(said) == list(range(FIRST, VCPUS))
    threads.stop()


def test_vcpu_of_soft_takes_no_memory_for_tables_that_it_does_not_use() -> None:
    # In a process of its own: where much was freed before, memory may come from there.
    done = subprocess.run(
        [sys.executable, "-c", GROWTH],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert 0 < int(done.stdout) < 2 << 20, "the tables of one have 9 MiB"

"""The dirty log as KVM's rings keep it: the same pages as from a bitmap, on each accelerator."""

from __future__ import annotations

import threading

import engine_guest
import pytest
from engine_guest import ENTRY, OUT, Register, enter_user_mode, lacks

from ostler.engine import Exit, IoOut, Vcpu, VirtualMachine
from ostler.errors import HostError

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")

PATIENCE_S = 60.0
RING = 1024
PAGE = 0x1000
BASE = 0x10_0000
PAGES = 3000
# mov [rbx], al; add rbx, 0x1000; dec ecx; jnz to the first; out 0x10, al
FILL = bytes.fromhex("8803 4881c300100000 ffc9 75f3") + OUT


def machine() -> VirtualMachine:
    """A VM of the accelerator under test that logs in rings, where it can."""
    try:
        return VirtualMachine(engine_guest.accelerator, dirty_ring=RING)
    except HostError as error:
        lacks(f"has no dirty ring: {error}")


def guest(code: bytes) -> tuple[VirtualMachine, Vcpu]:
    """A vCPU at `code` in user mode, and `PAGES` of memory from `BASE` on."""
    vm = machine()
    vm.memory.add_slot(0, gpa=0, size=0x10000)
    vm.memory.add_slot(7, gpa=BASE, size=PAGES * PAGE)
    vm.memory.write(ENTRY, code)
    vcpu = vm.create_vcpu(0)
    vm.bus.open_bus = False
    enter_user_mode(vm, vcpu)
    return vm, vcpu


def fill(vcpu: Vcpu, first: int, count: int) -> None:
    """Have the guest write to `count` pages of slot 7."""
    vcpu.set_regs(rip=ENTRY, rbx=BASE + first * PAGE, rcx=count)
    assert vcpu.run() == IoOut(0x10, b"\0")


def logged(vm: VirtualMachine) -> set[int]:
    """The pages of slot 7 that the log has."""
    bits = int.from_bytes(vm.memory.dirty_log(7), "little")
    return {page for page in range(PAGES) if bits >> page & 1}


def test_ring_has_exactly_the_pages_that_the_guest_wrote() -> None:
    vm, vcpu = guest(FILL)
    # KVM logs a page, too, when it first maps it for reading: the pages have to be mapped before.
    fill(vcpu, 0, 64)
    vm.memory.set_dirty_log(7, True)
    fill(vcpu, 5, 3)
    assert logged(vm) == {5, 6, 7}
    assert logged(vm) == set()
    fill(vcpu, 6, 1)
    vm.memory.write(BASE + 9 * PAGE, b"x")
    assert logged(vm) == {6, 9}


def test_ring_smaller_than_what_is_written_loses_nothing() -> None:
    vm, vcpu = guest(FILL)
    vm.memory.set_dirty_log(7, True)
    fill(vcpu, 0, PAGES)
    assert logged(vm) == set(range(PAGES))


def test_ring_of_a_vcpu_that_runs_is_emptied_meanwhile() -> None:
    spin = bytes.fromhex("8803") + OUT + bytes.fromhex("ebfe")  # mov [rbx], al; out; jmp $
    vm, vcpu = guest(spin)
    reached = threading.Event()

    class Bell(Register):
        def write(self, offset: int, size: int, value: int) -> None:
            reached.set()

    vm.bus.add("pio", 0x10, 1, Bell())
    vm.memory.set_dirty_log(7, True)
    vcpu.set_regs(rbx=BASE + 2 * PAGE)

    def ignore(_vcpu: int, _exit: Exit) -> None:
        """Nothing is expected to leave the guest."""

    threads = vm.start([vcpu], ignore)
    assert reached.wait(PATIENCE_S)
    assert 2 in logged(vm)
    threads.stop()


def test_log_ends_with_the_slot() -> None:
    vm, vcpu = guest(FILL)
    vm.memory.set_dirty_log(7, True)
    fill(vcpu, 0, 10)
    vm.memory.remove_slot(7)
    vm.memory.add_slot(7, gpa=BASE, size=PAGES * PAGE)
    vm.memory.set_dirty_log(7, True)
    assert logged(vm) == set()


@pytest.mark.parametrize("entries", [1, 1000, 512, 1 << 30])
def test_ring_of_a_size_that_kvm_does_not_take_is_refused(accelerator: str, entries: int) -> None:
    if accelerator != "kvm":
        VirtualMachine(accelerator, dirty_ring=entries)  # it has no use for one
        return
    machine()
    with pytest.raises(HostError, match="takes a power of two from 1024 to"):
        VirtualMachine(accelerator, dirty_ring=entries)

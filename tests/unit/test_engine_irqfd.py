"""Interrupts by eventfd: messages by their routes, and lines sampled again at their end."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest
from engine_guest import ENTRY, OUT, RAM_BYTES, Mailbox, enter_real_mode, machine

from ostler.engine import DescriptorTable, Exit, LapicState, Threads, VirtualMachine
from ostler.errors import ConfigError, StateError

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("irqchip")

PATIENCE_S = 60.0
MESSAGE, OTHER, LINE = 0x51, 0x61, 0x71
ROUTE, PIN = 100, 20
LAPIC = 0xFEE0_0000
LEVEL = 1 << 15


def handler(vector: int) -> bytes:
    """Says `vector` and ends the interrupt: mov al, vector; out; mov dword [0xb0], 0; iret."""
    return bytes((0xB0, vector)) + OUT + bytes.fromhex("66c706b00000000000 cf")


class Guest:
    """Says 1, waits for interrupts, and says the vector of each."""

    def __init__(self) -> None:
        self.vm: VirtualMachine = machine()
        self.vm.create_irqchip()
        self.vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
        self.mailbox = Mailbox()
        self.vm.bus.add("pio", 0x10, 1, self.mailbox)
        code = bytes.fromhex("b001") + OUT + bytes.fromhex("fbf4ebfc")  # sti; hlt; jmp sti
        self.vm.memory.write(ENTRY, code)
        for vector in (MESSAGE, OTHER, LINE):
            self.vm.memory.write(4 * vector, (0x2000 + vector * 16).to_bytes(4, "little"))
            self.vm.memory.write(0x2000 + vector * 16, handler(vector))
        vcpu = self.vm.create_vcpu(0)
        enter_real_mode(vcpu)
        sregs = vcpu.sregs
        sregs.idt = DescriptorTable(limit=0x3FF)
        sregs.ds.base = LAPIC
        vcpu.sregs = sregs
        vcpu.set_regs(rsp=0x8000)
        lapic = bytearray(vcpu.lapic.regs)
        lapic[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
        vcpu.lapic = LapicState(bytes(lapic))
        self.vcpu = vcpu

    def start(self) -> Threads:
        """Run it until it waits."""

        def ignore(_vcpu: int, _exit: Exit) -> None:
            """Nothing is expected to leave the guest."""

        threads = self.vm.start([self.vcpu], ignore)
        assert self.mailbox.get() == 1
        return threads

    def redirect(self, pin: int, entry: int) -> None:
        """Have the IOAPIC send what `entry` says for `pin`."""
        state = self.vm.irqchip_state
        table = list(state.ioapic.redirtbl)
        table[pin] = entry
        state.ioapic.redirtbl = tuple(table)
        self.vm.irqchip_state = state


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


@pytest.fixture
def resample() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def test_eventfd_sends_the_message_of_its_route(event: int) -> None:
    guest = Guest()
    guest.vm.set_msi_routes({ROUTE: (LAPIC, MESSAGE)})
    guest.vm.bind_irqfd(ROUTE, event)
    threads = guest.start()
    for _ in range(3):
        os.eventfd_write(event, 1)
        assert guest.mailbox.get() == MESSAGE
    guest.vm.set_msi_routes({ROUTE: (LAPIC, OTHER), ROUTE + 1: (LAPIC, MESSAGE)})
    os.eventfd_write(event, 1)
    assert guest.mailbox.get() == OTHER
    threads.stop()


def test_eventfd_let_go_is_nobodys_business(event: int) -> None:
    guest = Guest()
    guest.vm.set_msi_routes({ROUTE: (LAPIC, MESSAGE), ROUTE + 1: (LAPIC, OTHER)})
    guest.vm.bind_irqfd(ROUTE, event)
    assert guest.vm.unbind_irqfd(ROUTE)
    assert not guest.vm.unbind_irqfd(ROUTE)
    guest.vm.bind_irqfd(ROUTE + 1, event)
    threads = guest.start()
    os.eventfd_write(event, 1)
    assert guest.mailbox.get() == OTHER
    assert guest.mailbox.queue.empty()
    threads.stop()


def test_eventfd_of_a_line_is_an_edge(event: int) -> None:
    guest = Guest()
    guest.redirect(PIN, LINE)
    guest.vm.bind_irqfd(PIN, event)
    threads = guest.start()
    for _ in range(2):
        os.eventfd_write(event, 1)
        assert guest.mailbox.get() == LINE
    threads.stop()


def test_line_with_resample_falls_at_the_end_of_the_interrupt_and_says_so(
    event: int, resample: int
) -> None:
    guest = Guest()
    guest.redirect(PIN, LINE | LEVEL)
    guest.vm.bind_irqfd(PIN, event, resample)
    threads = guest.start()
    for _ in range(3):
        os.eventfd_write(event, 1)
        assert guest.mailbox.get() == LINE
        ready, _, _ = select.select([resample], [], [], PATIENCE_S)
        assert ready
        assert os.eventfd_read(resample) == 1
        # It was said once: the line has fallen, and nothing sends the interrupt again.
        assert guest.mailbox.queue.empty()
    threads.stop()


def test_eventfd_written_before_the_guest_runs_is_not_lost(event: int) -> None:
    guest = Guest()
    guest.vm.set_msi_routes({ROUTE: (LAPIC, MESSAGE)})
    os.eventfd_write(event, 1)
    guest.vm.bind_irqfd(ROUTE, event)
    threads = guest.start()
    assert guest.mailbox.get() == MESSAGE
    threads.stop()


def test_interrupt_that_cannot_be_is_refused(event: int) -> None:
    vm = machine()
    with pytest.raises(ConfigError, match="no interrupt controllers"):
        vm.bind_irqfd(PIN, event)
    with pytest.raises(ConfigError, match="no interrupt controllers"):
        vm.set_msi_routes({ROUTE: (LAPIC, MESSAGE)})
    vm.create_irqchip()
    with pytest.raises(StateError, match="the number of a message: 0x17 is not a valid value"):
        vm.set_msi_routes({23: (LAPIC, MESSAGE)})
    with pytest.raises(StateError, match="the number of an interrupt: 0x64 is not"):
        vm.bind_irqfd(ROUTE, event, event)
    with pytest.raises(StateError, match="the number of an interrupt: 0x10000000 is not"):
        vm.bind_irqfd(1 << 28, event)
    with pytest.raises(OSError, match="Bad file descriptor"):
        vm.bind_irqfd(PIN, -1)

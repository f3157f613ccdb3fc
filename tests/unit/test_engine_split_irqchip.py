"""PIC, PIT and IOAPIC as a guest programs and hears them, wherever they are."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest
from engine_guest import ENTRY, OUT, RAM_BYTES, SPIN, Mailbox, enter_real_mode, machine

from ostler.engine import DescriptorTable, Exit, LapicState, Threads, VirtualMachine

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("irqchip")

PIC_BASE = 0x50
TIMER, LINE, SLAVE_LINE = 0, 4, 12
PIN, PIN_VECTOR = 20, 0x71
EDGE_PIN, EDGE_VECTOR = 21, 0x61
IOAPIC = 0xFEC0_0000
LEVEL = 1 << 15
# Of a count of 0, which stands for 65536.
PIT_PERIOD_S = 65536 / 1193182
READY = 1
CLI, STI, HLT, IRET = b"\xfa", b"\xfb", b"\xf4", b"\xcf"
FOREVER_HALTED = STI + HLT + bytes.fromhex("ebfd")  # sti; hlt; jmp hlt


def outb(port: int, value: int) -> bytes:
    """Mov al, value; out port, al."""
    return bytes((0xB0, value, 0xE6, port))


def say(value: int) -> bytes:
    return bytes((0xB0, value)) + OUT


def write(address: int, value: int) -> bytes:
    """Mov dword [address], value."""
    return b"\x66\xc7\x06" + address.to_bytes(2, "little") + value.to_bytes(4, "little")


def init_pics() -> bytes:
    """Vectors from 0x50 on, the slave's from 0x58 on; nothing is masked."""
    master = [(0x20, 0x11), (0x21, PIC_BASE), (0x21, 4), (0x21, 1), (0x21, 0)]
    slave = [(0xA0, 0x11), (0xA1, PIC_BASE + 8), (0xA1, 2), (0xA1, 1), (0xA1, 0)]
    return b"".join(outb(port, value) for port, value in master + slave)


def redirect(pin: int, entry: int) -> bytes:
    """Write a redirection entry by the IOAPIC's index and data registers, with DS on them."""
    low, high = entry & 0xFFFF_FFFF, entry >> 32
    words = ((0x11 + 2 * pin, high), (0x10 + 2 * pin, low))
    return b"".join(write(0, register) + write(0x10, value) for register, value in words)


class Guest:
    """A guest that runs `code` in real mode; vectors of PIC and IOAPIC are said and ended."""

    def __init__(self, code: bytes) -> None:
        self.vm: VirtualMachine = machine()
        self.vm.create_irqchip()
        self.vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
        self.vm.memory.write(ENTRY, code)
        self.mailbox = Mailbox()
        self.vm.bus.add("pio", 0x10, 1, self.mailbox)
        for number in range(16):
            end = outb(0xA0, 0x20) + outb(0x20, 0x20) if number >= 8 else outb(0x20, 0x20)
            self._handler(PIC_BASE + number, end)
        # The local APIC is ES: mov dword es:[0xb0], 0.
        for vector in (PIN_VECTOR, EDGE_VECTOR):
            self._handler(vector, b"\x26" + write(0xB0, 0))
        self.vcpu = self.vm.create_vcpu(0)
        enter_real_mode(self.vcpu)
        sregs = self.vcpu.sregs
        sregs.idt = DescriptorTable(limit=0x3FF)
        sregs.ds.base, sregs.es.base = IOAPIC, 0xFEE0_0000
        self.vcpu.sregs = sregs
        self.vcpu.set_regs(rsp=0x8000)
        lapic = bytearray(self.vcpu.lapic.regs)
        lapic[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")
        self.vcpu.lapic = LapicState(bytes(lapic))
        self.threads: Threads | None = None

    def _handler(self, vector: int, end: bytes) -> None:
        at = 0x2000 + vector * 32
        self.vm.memory.write(4 * vector, at.to_bytes(4, "little"))
        push_al, pop_al = b"\x50", b"\x58"
        self.vm.memory.write(at, push_al + say(vector) + end + pop_al + IRET)

    def start(self) -> None:
        """Run until it says that it is ready."""

        def ignore(_vcpu: int, _exit: Exit) -> None:
            """Nothing is expected to leave the guest."""

        self.threads = self.vm.start([self.vcpu], ignore)
        assert self.mailbox.get() == READY

    def heard(self) -> int:
        return self.mailbox.get()


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    """Whoever is put in here is stopped at the end."""
    started: list[Guest] = []
    yield started
    for guest in started:
        if guest.threads is not None:
            guest.threads.stop()


def test_line_reaches_a_halted_guest_through_both_pics(guests: list[Guest]) -> None:
    guests.append(guest := Guest(init_pics() + say(READY) + FOREVER_HALTED))
    guest.start()
    for number in (LINE, SLAVE_LINE, LINE):
        guest.vm.irq_line(number).pulse()
        assert guest.heard() == PIC_BASE + number


def test_line_reaches_a_guest_that_never_halts(guests: list[Guest]) -> None:
    guests.append(guest := Guest(init_pics() + say(READY) + STI + SPIN))
    guest.start()
    for _ in range(3):
        guest.vm.irq_line(LINE).pulse()
        assert guest.heard() == PIC_BASE + LINE


def test_request_waits_until_the_guest_enables_interrupts(guests: list[Guest]) -> None:
    wait_for_go = bytes.fromhex("e410 3c07 75fa")  # in al, 0x10; cmp al, 7; jne in
    guests.append(guest := Guest(init_pics() + say(READY) + wait_for_go + say(2) + FOREVER_HALTED))
    guest.start()
    # Two at once: the second is behind the first one's end.
    guest.vm.irq_line(LINE + 1).set_level(True)
    guest.vm.irq_line(LINE).set_level(True)
    guest.mailbox.value = 7
    assert [guest.heard() for _ in range(3)] == [2, PIC_BASE + LINE, PIC_BASE + LINE + 1]


def test_pit_ticks_through_the_pic(guests: list[Guest]) -> None:
    # Counter 0, mode 2, 11932 ticks: 10 ms.
    tick = outb(0x43, 0x34) + outb(0x40, 0x9C) + outb(0x40, 0x2E)
    guests.append(guest := Guest(init_pics() + say(READY) + tick + FOREVER_HALTED))
    guest.start()
    assert [guest.heard() for _ in range(3)] == [PIC_BASE + TIMER] * 3


def test_level_triggered_pin_interrupts_until_its_line_falls(guests: list[Guest]) -> None:
    pins = redirect(PIN, LEVEL | PIN_VECTOR) + redirect(EDGE_PIN, EDGE_VECTOR)
    guests.append(guest := Guest(pins + say(READY) + FOREVER_HALTED))
    guest.start()
    line = guest.vm.irq_line(PIN)
    line.set_level(True)
    assert [guest.heard() for _ in range(3)] == [PIN_VECTOR] * 3
    line.set_level(False)
    # What was under way has come to its end when an edge of lower priority is heard.
    edge = guest.vm.irq_line(EDGE_PIN)
    edge.pulse()
    while guest.heard() != EDGE_VECTOR:
        pass
    edge.pulse()
    assert guest.heard() == EDGE_VECTOR
    line.set_level(True)
    assert guest.heard() == PIN_VECTOR


def test_vector_of_the_pic_is_where_it_was_after_a_pause(guests: list[Guest]) -> None:
    guests.append(guest := Guest(init_pics() + say(READY) + FOREVER_HALTED))
    guest.start()
    assert guest.threads is not None
    line = guest.vm.irq_line(LINE)
    for _ in range(20):
        line.pulse()
        guest.threads.pause()
        state = guest.vm.irqchip_state
        guest.vm.irqchip_state = state
        guest.vcpu.events = guest.vcpu.events
        guest.threads.resume()
        assert guest.heard() == PIC_BASE + LINE


def test_timer_that_nobody_programmed_does_not_tick_after_its_state_was_set(
    guests: list[Guest],
) -> None:
    guests.append(guest := Guest(init_pics() + say(READY) + FOREVER_HALTED))
    guest.start()
    assert guest.threads is not None
    guest.threads.pause()
    guest.vm.irqchip_state = guest.vm.irqchip_state
    guest.threads.resume()
    with pytest.raises(queue.Empty):
        guest.mailbox.get(timeout=10 * PIT_PERIOD_S)


def test_state_of_the_chips_goes_to_the_software_cpu_and_back(guests: list[Guest]) -> None:
    code = init_pics() + redirect(PIN, LEVEL | PIN_VECTOR) + say(READY) + FOREVER_HALTED
    guests.append(guest := Guest(code))
    guest.start()
    assert guest.threads is not None
    guest.threads.pause()
    state = guest.vm.irqchip_state
    assert state.ioapic.redirtbl[PIN] == LEVEL | PIN_VECTOR
    assert [pic.irq_base for pic in state.pics] == [PIC_BASE, PIC_BASE + 8]
    other = VirtualMachine("soft")
    other.create_irqchip()
    other.irqchip_state = state
    moved = other.irqchip_state
    assert (moved.pics, moved.ioapic) == (state.pics, state.ioapic)
    guest.vm.irqchip_state = moved
    guest.threads.resume()
    guest.vm.irq_line(LINE).pulse()
    assert guest.heard() == PIC_BASE + LINE
    guest.vm.irq_line(PIN).set_level(True)
    assert guest.heard() == PIN_VECTOR

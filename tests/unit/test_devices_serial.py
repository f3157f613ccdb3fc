import pytest

from ostler.devices.serial import (
    FCR_ENABLE,
    IER_RECEIVED,
    IER_THR_EMPTY,
    IIR_FIFOS_ENABLED,
    IIR_NONE,
    IIR_RECEIVED,
    IIR_THR_EMPTY,
    IIR_TIMEOUT,
    LSR_BREAK,
    LSR_DATA_READY,
    LSR_OVERRUN,
    MCR_LOOPBACK,
    MCR_OUT2,
    MCR_RTS,
    MSR_CTS,
    MSR_DCD,
    POLLS_THAT_LISTEN,
    Register,
    Serial16550,
)
from ostler.testing import FakeIrqLine, VirtualClock

DLAB = 0x80


class Cable:
    """The host's end of the cable."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.waiting = bytearray()

    def transmit(self, data: bytes) -> None:
        self.sent += data

    def receive(self, limit: int) -> bytes:
        data = bytes(self.waiting[:limit])
        del self.waiting[:limit]
        return data

    def take_back(self, data: bytes) -> None:
        self.waiting[:0] = data


class Port:
    def __init__(self) -> None:
        self.irq, self.clock, self.cable = FakeIrqLine(), VirtualClock(), Cable()
        self.device = Serial16550(self.irq, self.clock, self.clock, self.cable)

    def get(self, register: int) -> int:
        return self.device.read(register, 1)

    def put(self, register: int, value: int) -> None:
        self.device.write(register, 1, value)

    def type(self, data: bytes) -> None:
        self.cable.waiting += data
        self.device.input_ready()


@pytest.fixture
def port() -> Port:
    return Port()


@pytest.fixture
def open_port(port: Port) -> Port:
    port.put(Register.IIR_FCR, FCR_ENABLE | 0x80)  # trigger at 8
    port.put(Register.MCR, MCR_RTS | MCR_OUT2)
    port.put(Register.IER, IER_RECEIVED)
    return port


def test_serial_transmit_reaches_host(port: Port) -> None:
    for byte in b"login:":
        port.put(Register.DATA, byte)
    assert port.cable.sent == b"login:"


def test_serial_linux_autoconfig_finds_a_16550a(port: Port) -> None:
    port.put(Register.IER, 0xFF)
    assert port.get(Register.IER) == 0x0F
    port.put(Register.MCR, MCR_LOOPBACK | MCR_OUT2 | MCR_RTS)
    assert port.get(Register.MSR) & 0xF0 == MSR_DCD | MSR_CTS
    port.put(Register.LCR, 0)
    port.put(Register.IIR_FCR, FCR_ENABLE)
    assert port.get(Register.IIR_FCR) >> 6 == 3
    # A 16650 reads zero here, a 16750 shows bit 5 for a 64-byte FIFO.
    port.put(Register.LCR, DLAB)
    assert port.get(Register.IIR_FCR) != 0
    port.put(Register.IIR_FCR, FCR_ENABLE | 0x20)
    assert port.get(Register.IIR_FCR) >> 5 == 6


def test_serial_loopback_of_256_bytes_keeps_16_and_flags_overrun(port: Port) -> None:
    port.put(Register.IIR_FCR, FCR_ENABLE)
    port.put(Register.MCR, MCR_LOOPBACK)
    for byte in range(256):
        port.put(Register.DATA, byte)
    assert port.get(Register.LSR) & LSR_OVERRUN
    assert [port.get(Register.DATA) for _ in range(16)] == list(range(16))
    assert not port.get(Register.LSR) & (LSR_DATA_READY | LSR_OVERRUN)
    assert port.cable.sent == b""


def test_serial_divisor_latch_hides_data_and_ier(port: Port) -> None:
    port.put(Register.LCR, DLAB)
    port.put(Register.DATA, 0x34)
    port.put(Register.IER, 0x12)
    assert port.device.state.divisor == 0x1234
    port.put(Register.LCR, 0)
    assert port.get(Register.IER) == 0


def test_serial_thr_interrupt_reasserts_each_time_it_is_enabled(port: Port) -> None:
    port.put(Register.MCR, MCR_OUT2)
    for _ in range(2):
        port.put(Register.IER, IER_THR_EMPTY)
        assert port.irq.level
        assert port.get(Register.IIR_FCR) == IIR_THR_EMPTY
        assert port.get(Register.IIR_FCR) == IIR_NONE
        assert not port.irq.level
        port.put(Register.IER, 0)


def test_serial_input_below_trigger_interrupts_after_four_characters(open_port: Port) -> None:
    open_port.type(b"ab")
    assert not open_port.irq.level
    open_port.clock.advance(10_000_000)
    assert open_port.irq.level
    assert open_port.get(Register.IIR_FCR) == IIR_TIMEOUT | IIR_FIFOS_ENABLED
    open_port.get(Register.DATA)
    assert not open_port.irq.level
    open_port.clock.advance(10_000_000)
    assert open_port.irq.level


def test_serial_input_at_trigger_interrupts_at_once(open_port: Port) -> None:
    open_port.type(b"12345678")
    assert open_port.irq.level
    assert open_port.get(Register.IIR_FCR) == IIR_RECEIVED | IIR_FIFOS_ENABLED


def test_serial_long_input_waits_for_room(open_port: Port) -> None:
    text = bytes(range(100))
    open_port.type(text)
    assert len(open_port.cable.waiting) == 84
    got = bytearray()
    while open_port.get(Register.LSR) & LSR_DATA_READY:
        got.append(open_port.get(Register.DATA))
    assert got == text
    assert not open_port.get(Register.LSR) & LSR_OVERRUN


def test_serial_input_before_guest_listens_is_not_lost(port: Port) -> None:
    port.type(b"early")
    port.put(Register.IIR_FCR, 0x07)
    port.put(Register.IER, IER_RECEIVED)
    assert bytes(port.get(Register.DATA) for _ in range(5)) == b"early"


def test_serial_polling_guest_sees_input(port: Port) -> None:
    port.cable.waiting += b"x"
    status = [port.get(Register.LSR) for _ in range(POLLS_THAT_LISTEN)]
    assert not any(value & LSR_DATA_READY for value in status[:-1])
    assert status[-1] & LSR_DATA_READY
    assert port.get(Register.DATA) == ord("x")


def test_serial_printing_guest_takes_no_input(port: Port) -> None:
    port.cable.waiting += b"x"
    for byte in b"printing":
        port.get(Register.LSR)
        port.put(Register.DATA, byte)
    assert port.cable.waiting == b"x"


def test_serial_cleared_fifo_receives_again_what_was_unread(port: Port) -> None:
    port.type(b"early")
    port.put(Register.IER, IER_RECEIVED)
    assert port.cable.waiting == b"arly"
    port.put(Register.IIR_FCR, 0x07)
    assert bytes(port.get(Register.DATA) for _ in range(5)) == b"early"


def test_serial_cleared_fifo_forgets_what_was_looped_back(port: Port) -> None:
    port.put(Register.MCR, MCR_LOOPBACK)
    port.put(Register.DATA, 0x55)
    port.put(Register.IIR_FCR, 0x07)
    assert port.cable.waiting == b""
    assert not port.get(Register.LSR) & LSR_DATA_READY


def test_serial_break_shows_once_with_a_zero_character(open_port: Port) -> None:
    open_port.device.send_break()
    assert open_port.get(Register.LSR) & LSR_BREAK
    assert not open_port.get(Register.LSR) & LSR_BREAK
    assert open_port.get(Register.DATA) == 0


def test_serial_interrupt_without_out2_stays_off_the_bus(port: Port) -> None:
    port.put(Register.IER, IER_THR_EMPTY)
    assert not port.irq.level
    port.put(Register.MCR, MCR_OUT2)
    assert port.irq.level


def test_serial_scratch_keeps_a_byte(port: Port) -> None:
    port.put(Register.SCRATCH, 0xA5)
    assert port.get(Register.SCRATCH) == 0xA5

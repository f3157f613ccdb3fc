"""16550A serial port: eight ports, as COM1..COM4 of a PC have them.

Spec: National Semiconductor PC16550D (June 1995). The host at the other end of the cable keeps
its carrier, DSR and CTS asserted. It holds input back until the guest listens, by the receive
interrupt or by polling the line status, and sends again what a reset of the receive FIFO threw
away: what is typed early outlives the probing of a driver.

Not modelled: the time a character takes on the line (what is transmitted has left at once, what
is received comes as fast as the FIFO empties), parity and framing errors, the break a guest sends,
DMA.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from ostler.devices.byte_registers import OPEN_BUS, ByteRegisters
from ostler.devices.device import Clock, IrqLine
from ostler.devices.timer import TimerService
from ostler.errors import StateError
from ostler.state import State

PORTS = 8


class Register(IntEnum):
    """Offsets; with the divisor latch bit of LCR set, the first two are the divisor."""

    DATA = 0
    IER = 1
    IIR_FCR = 2
    LCR = 3
    MCR = 4
    LSR = 5
    MSR = 6
    SCRATCH = 7


DIVISOR_LATCH = (Register.DATA, Register.IER)

IER_RECEIVED, IER_THR_EMPTY, IER_LINE_STATUS, IER_MODEM_STATUS = 0x01, 0x02, 0x04, 0x08
IER_MASK = 0x0F

# Interrupt causes as the IIR names them, highest priority first.
IIR_LINE_STATUS, IIR_RECEIVED, IIR_TIMEOUT, IIR_THR_EMPTY, IIR_MODEM_STATUS = 6, 4, 12, 2, 0
IIR_NONE = 0x01
IIR_FIFOS_ENABLED = 0xC0

FCR_ENABLE, FCR_CLEAR_RECEIVER = 0x01, 0x02
FCR_KEPT = 0xC9  # the trigger level, the DMA mode and the enable bit; the rest are strobes
TRIGGER_LEVELS = (1, 4, 8, 14)
FIFO_BYTES = 16

LCR_DIVISOR_LATCH = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOPBACK = 0x01, 0x02, 0x04, 0x08, 0x10
MCR_MASK = 0x1F

LSR_DATA_READY, LSR_OVERRUN, LSR_BREAK = 0x01, 0x02, 0x10
LSR_THR_EMPTY, LSR_TRANSMITTER_EMPTY, LSR_FIFO_ERROR = 0x20, 0x40, 0x80

MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_CABLE = MSR_CTS | MSR_DSR | MSR_DCD
MSR_RI_FELL = 0x04

# A driver that prints reads LSR once or twice between other accesses; one that reads it this often
# in a row waits for input.
POLLS_THAT_LISTEN = 4

FLAG_BREAK, FLAG_FROM_HOST = 0x01, 0x02

BASE_BAUD = 115_200
BITS_PER_CHARACTER = 10
TIMEOUT_CHARACTERS = 4


class SerialHost(Protocol):
    """The other end of the cable."""

    def transmit(self, data: bytes) -> None:
        """Take what the guest sent; called on a vCPU thread, so it should not block."""

    def receive(self, limit: int) -> bytes:
        """Up to `limit` bytes that wait to be received, none when nothing does."""

    def take_back(self, data: bytes) -> None:
        """Take `data`, which the guest has not read, to be received again before all else."""


class Unplugged:
    """The other end of a cable that leads nowhere."""

    def transmit(self, data: bytes) -> None:
        pass

    def receive(self, limit: int) -> bytes:
        return b""

    def take_back(self, data: bytes) -> None:
        pass


@dataclass(slots=True)
class SerialState(State):
    """The registers, and the receive FIFO with flags (`FLAG_*`) for each character."""

    divisor: int = 12
    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    scratch: int = 0
    msr_deltas: int = 0
    overrun: bool = False
    thr_interrupt: bool = False
    timeout_interrupt: bool = False
    fifo: bytearray = field(default_factory=bytearray)
    flags: bytearray = field(default_factory=bytearray)

    def validate(self) -> None:
        for name in ("ier", "fcr", "lcr", "mcr", "scratch", "msr_deltas"):
            if not 0 <= getattr(self, name) <= 0xFF:
                raise StateError(f"serial: {name} is not a byte")
        if not 0 <= self.divisor <= 0xFFFF:
            raise StateError("serial: divisor is not 16 bits wide")
        if len(self.fifo) > FIFO_BYTES or len(self.flags) != len(self.fifo):
            raise StateError("serial: receive FIFO and its flags have to match, 16 at most")


class Serial16550(ByteRegisters[SerialState]):
    """One port. Call `input_ready` whenever `host.receive` has something new."""

    name, State = "serial", SerialState

    def __init__(
        self, irq: IrqLine, clock: Clock, timers: TimerService, host: SerialHost | None = None
    ) -> None:
        super().__init__()
        self.state = SerialState()
        self._irq, self._clock, self._host = irq, clock, host or Unplugged()
        self._timeout = timers.timer(self._on_timeout)
        self._level: bool | None = None
        self._polls = 0  # reads of LSR in a row

    def replace(self, state: SerialState) -> None:
        with self.lock:
            self.state = state
            self._level = None
            self._restart_timeout()
            self._update_irq()

    def input_ready(self) -> None:
        """Fetch waiting input as far as the guest listens and the FIFO has room."""
        with self.lock:
            self._fetch()

    def send_break(self) -> None:
        """Signal a break: the guest sees a zero character with the break flag."""
        with self.lock:
            self._receive(0, FLAG_BREAK)
            self._update_irq()

    def read_byte(self, offset: int) -> int:
        state = self.state
        self._polls = self._polls + 1 if offset == Register.LSR else 0
        if state.lcr & LCR_DIVISOR_LATCH and offset in DIVISOR_LATCH:
            return state.divisor >> (8 * offset) & 0xFF
        match offset:
            case Register.DATA:
                return self._read_data()
            case Register.IER:
                return state.ier
            case Register.IIR_FCR:
                return self._read_iir()
            case Register.LCR:
                return state.lcr
            case Register.MCR:
                return state.mcr
            case Register.LSR:
                return self._read_lsr()
            case Register.MSR:
                return self._read_msr()
            case Register.SCRATCH:
                return state.scratch
        return OPEN_BUS

    def write_byte(self, offset: int, value: int) -> None:
        state = self.state
        self._polls = 0
        if state.lcr & LCR_DIVISOR_LATCH and offset in DIVISOR_LATCH:
            shift = 8 * offset
            state.divisor = state.divisor & ~(0xFF << shift) | value << shift
            return
        match offset:
            case Register.DATA:
                self._write_data(value)
            case Register.IER:
                self._write_ier(value)
            case Register.IIR_FCR:
                self._write_fcr(value)
            case Register.LCR:
                state.lcr = value
            case Register.MCR:
                self._write_mcr(value & MCR_MASK)
            case Register.SCRATCH:
                state.scratch = value
        self._update_irq()

    # -- receiver ---------------------------------------------------------------------------

    def _listening(self) -> bool:
        state = self.state
        if state.mcr & MCR_LOOPBACK:
            return False
        return bool(state.ier & IER_RECEIVED) or self._polls >= POLLS_THAT_LISTEN

    def _capacity(self) -> int:
        return FIFO_BYTES if self.state.fcr & FCR_ENABLE else 1

    def _trigger(self) -> int:
        return TRIGGER_LEVELS[self.state.fcr >> 6] if self.state.fcr & FCR_ENABLE else 1

    def _fetch(self) -> None:
        room = self._capacity() - len(self.state.fifo)
        if room > 0 and self._listening():
            data = self._host.receive(room)
            for byte in data:
                self._receive(byte, FLAG_FROM_HOST)
            if data:
                self._update_irq()

    def _receive(self, byte: int, flags: int = 0) -> None:
        state = self.state
        if len(state.fifo) >= self._capacity():
            state.overrun = True  # the character in the shift register is lost, the FIFO is not
            return
        state.fifo.append(byte)
        state.flags.append(flags)
        self._restart_timeout()

    def _clear_fifo(self) -> None:
        state = self.state
        unread = zip(state.fifo, state.flags, strict=True)
        self._host.take_back(bytes(byte for byte, flags in unread if flags & FLAG_FROM_HOST))
        state.fifo.clear()
        state.flags.clear()
        state.timeout_interrupt = False

    def _read_data(self) -> int:
        state = self.state
        if not state.fifo:
            return 0
        byte = state.fifo.pop(0)
        state.flags.pop(0)
        state.timeout_interrupt = False
        self._restart_timeout()
        if not state.fifo:
            self._fetch()
        self._update_irq()
        return byte

    def _restart_timeout(self) -> None:
        state = self.state
        waiting = 0 < len(state.fifo) < self._trigger()
        if state.fcr & FCR_ENABLE and waiting and not state.timeout_interrupt:
            character_ns = 1_000_000_000 * BITS_PER_CHARACTER * max(state.divisor, 1) // BASE_BAUD
            self._timeout.arm(self._clock.now_ns() + TIMEOUT_CHARACTERS * character_ns)
        else:
            self._timeout.cancel()

    def _on_timeout(self) -> None:
        with self.lock:
            if self.state.fifo and self.state.fcr & FCR_ENABLE:
                self.state.timeout_interrupt = True
                self._update_irq()

    # -- transmitter ------------------------------------------------------------------------

    def _write_data(self, value: int) -> None:
        if self.state.mcr & MCR_LOOPBACK:
            self._receive(value)
        else:
            self._host.transmit(bytes((value,)))
        self.state.thr_interrupt = True

    # -- control and status -----------------------------------------------------------------

    def _write_ier(self, value: int) -> None:
        enabled = value & IER_MASK & ~self.state.ier
        self.state.ier = value & IER_MASK
        if enabled & IER_THR_EMPTY:
            # Drivers start transmission by this: enabled with an empty THR, it is raised.
            self.state.thr_interrupt = True
        self._fetch()

    def _write_fcr(self, value: int) -> None:
        state = self.state
        if (value ^ state.fcr) & FCR_ENABLE or value & FCR_CLEAR_RECEIVER:
            self._clear_fifo()
        state.fcr = value & FCR_KEPT if value & FCR_ENABLE else 0
        self._restart_timeout()
        self._fetch()

    def _write_mcr(self, value: int) -> None:
        before = self._modem_lines()
        self.state.mcr = value
        after = self._modem_lines()
        deltas = (before ^ after) >> 4
        if deltas & MSR_RI_FELL and after & MSR_RI:
            deltas &= ~MSR_RI_FELL  # of the ring indicator only the trailing edge counts
        self.state.msr_deltas |= deltas
        self._fetch()

    def _modem_lines(self) -> int:
        mcr = self.state.mcr
        if not mcr & MCR_LOOPBACK:
            return MSR_CABLE
        looped = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
        return sum(line for output, line in looped if mcr & output)

    def _read_msr(self) -> int:
        value = self._modem_lines() | self.state.msr_deltas
        self.state.msr_deltas = 0
        self._update_irq()
        return value

    def _read_lsr(self) -> int:
        state = self.state
        if not state.fifo:
            self._fetch()  # a guest that polls asks here
        if not state.fifo and not state.overrun:
            return LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY  # before each character that is printed
        value = LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY
        value |= LSR_DATA_READY if state.fifo else 0
        value |= LSR_OVERRUN if state.overrun else 0
        if any(flags & FLAG_BREAK for flags in state.flags):
            value |= LSR_FIFO_ERROR if state.fcr & FCR_ENABLE else 0
            value |= LSR_BREAK if state.flags[0] & FLAG_BREAK else 0
        state.overrun = False
        if state.flags:
            state.flags[0] &= ~FLAG_BREAK
        self._update_irq()
        return value

    def _read_iir(self) -> int:
        cause = self._interrupt()
        if cause == IIR_THR_EMPTY:
            self.state.thr_interrupt = False
            self._update_irq()
        return cause | (IIR_FIFOS_ENABLED if self.state.fcr & FCR_ENABLE else 0)

    def _interrupt(self) -> int:
        """The pending cause of the highest priority (table 4 of the data sheet)."""
        state = self.state
        broken = bool(state.flags) and bool(state.flags[0] & FLAG_BREAK)
        if state.ier & IER_LINE_STATUS and (state.overrun or broken):
            return IIR_LINE_STATUS
        if state.ier & IER_RECEIVED and len(state.fifo) >= self._trigger():
            return IIR_RECEIVED
        if state.ier & IER_RECEIVED and state.timeout_interrupt:
            return IIR_TIMEOUT
        if state.ier & IER_THR_EMPTY and state.thr_interrupt:
            return IIR_THR_EMPTY
        if state.ier & IER_MODEM_STATUS and state.msr_deltas:
            return IIR_MODEM_STATUS
        return IIR_NONE

    def _update_irq(self) -> None:
        # On a PC, OUT2 gates the interrupt on to the bus, and loopback disconnects OUT2.
        gate = self.state.mcr & (MCR_OUT2 | MCR_LOOPBACK) == MCR_OUT2
        level = gate and self._interrupt() != IIR_NONE
        if level != self._level:
            self._level = level
            self._irq.set_level(level)

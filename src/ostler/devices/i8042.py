"""i8042 keyboard controller at ports 0x60 and 0x64, with nothing plugged in.

Spec: IBM PS/2 Technical Reference, keyboard/auxiliary device controller. Every controller command
is answered, so that a driver's probe never runs into its time-outs, and a byte sent to a missing
keyboard or mouse comes back at once as RESEND with the time-out flag, as real controllers do.

Not modelled: keyboard and mouse, the password commands, scan code translation, the A20 gate (A20 is
always on; its output port bit only keeps what was written).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from ostler.devices.byte_registers import OPEN_BUS, ByteRegisters
from ostler.devices.device import IrqLine
from ostler.devices.requests import MachineRequests
from ostler.errors import StateError
from ostler.state import State

# The two registers are one byte each and four ports apart; each is a range of its own.
DATA, COMMAND_STATUS = 0, 4
PORTS = 5

STATUS_OUTPUT_FULL, STATUS_SYSTEM, STATUS_COMMAND = 0x01, 0x04, 0x08
STATUS_UNLOCKED, STATUS_AUX_OUTPUT, STATUS_TIMEOUT = 0x10, 0x20, 0x40

CONFIG_KEYBOARD_IRQ, CONFIG_AUX_IRQ, CONFIG_SYSTEM = 0x01, 0x02, 0x04
CONFIG_KEYBOARD_OFF, CONFIG_AUX_OFF = 0x10, 0x20
CONFIG_DEFAULT = CONFIG_SYSTEM | CONFIG_KEYBOARD_OFF | CONFIG_AUX_OFF

READ_RAM, WRITE_RAM, PULSE = range(0x20, 0x40), range(0x60, 0x80), range(0xF0, 0x100)


class Command(IntEnum):
    """Controller commands; those that name a range are above."""

    TO_KEYBOARD = 0  # not a command: what a parameter without one is
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT_PORT = 0xC0
    READ_OUTPUT_PORT = 0xD0
    WRITE_OUTPUT_PORT = 0xD1
    ECHO_KEYBOARD = 0xD2
    ECHO_AUX = 0xD3
    TO_AUX = 0xD4
    DISABLE_A20 = 0xDD
    ENABLE_A20 = 0xDF
    READ_TEST_INPUTS = 0xE0


WITH_PARAMETER = {
    *WRITE_RAM,
    Command.WRITE_OUTPUT_PORT,
    Command.ECHO_KEYBOARD,
    Command.ECHO_AUX,
    Command.TO_AUX,
}

SELF_TEST_PASSED, INTERFACE_OK, RESEND = 0x55, 0x00, 0xFE
INPUT_PORT_UNLOCKED = 0x80
OUTPUT_NO_RESET, OUTPUT_A20 = 0x01, 0x02


@dataclass(slots=True)
class I8042State(State):
    """The controller's RAM (byte 0 is the configuration), its buffer and its output port."""

    ram: bytearray = field(default_factory=lambda: bytearray((CONFIG_DEFAULT, *bytes(31))))
    output: int = 0
    output_flags: int = 0
    output_port: int = OUTPUT_NO_RESET | OUTPUT_A20
    pending_command: int = 0
    last_was_command: bool = False

    def validate(self) -> None:
        if len(self.ram) != 32:
            raise StateError("i8042: the controller has 32 bytes of RAM")
        for name in ("output", "output_port"):
            if not 0 <= getattr(self, name) <= 0xFF:
                raise StateError(f"i8042: {name} is not a byte")
        if self.output_flags & ~(STATUS_OUTPUT_FULL | STATUS_AUX_OUTPUT | STATUS_TIMEOUT):
            raise StateError("i8042: output_flags has unknown bits")
        if self.pending_command != 0 and self.pending_command not in WITH_PARAMETER:
            raise StateError("i8042: pending_command takes no parameter")


class I8042(ByteRegisters[I8042State]):
    """The controller; its reset output asks `requests` for a machine reset."""

    name, State = "i8042", I8042State

    def __init__(self, keyboard_irq: IrqLine, aux_irq: IrqLine, requests: MachineRequests) -> None:
        super().__init__()
        self.state = I8042State()
        self._keyboard_irq, self._aux_irq = keyboard_irq, aux_irq
        self._requests = requests

    def replace(self, state: I8042State) -> None:
        with self.lock:
            self.state = state
            self._update_irqs()

    def read_byte(self, offset: int) -> int:
        if offset == COMMAND_STATUS:
            return self._status()
        if offset != DATA:
            return OPEN_BUS
        self.state.output_flags = 0
        self._update_irqs()
        return self.state.output

    def write_byte(self, offset: int, value: int) -> None:
        if offset == COMMAND_STATUS:
            self.state.last_was_command = True
            self._command(value)
        elif offset == DATA:
            self.state.last_was_command = False
            command, self.state.pending_command = self.state.pending_command, 0
            self._parameter(command, value)
        self._update_irqs()

    def _status(self) -> int:
        state = self.state
        system = STATUS_SYSTEM if state.ram[0] & CONFIG_SYSTEM else 0
        command = STATUS_COMMAND if state.last_was_command else 0
        return STATUS_UNLOCKED | state.output_flags | system | command

    def _answer(self, value: int, flags: int = 0) -> None:
        self.state.output, self.state.output_flags = value, STATUS_OUTPUT_FULL | flags

    def _command(self, command: int) -> None:
        state = self.state
        state.pending_command = command if command in WITH_PARAMETER else 0
        match command:
            case Command.SELF_TEST:
                state.ram[0] |= CONFIG_SYSTEM
                self._answer(SELF_TEST_PASSED)
            case Command.TEST_AUX | Command.TEST_KEYBOARD:
                self._answer(INTERFACE_OK)
            case Command.DISABLE_AUX:
                state.ram[0] |= CONFIG_AUX_OFF
            case Command.ENABLE_AUX:
                state.ram[0] &= ~CONFIG_AUX_OFF
            case Command.DISABLE_KEYBOARD:
                state.ram[0] |= CONFIG_KEYBOARD_OFF
            case Command.ENABLE_KEYBOARD:
                state.ram[0] &= ~CONFIG_KEYBOARD_OFF
            case Command.READ_INPUT_PORT:
                self._answer(INPUT_PORT_UNLOCKED)
            case Command.READ_OUTPUT_PORT:
                self._answer(state.output_port)
            case Command.READ_TEST_INPUTS:
                self._answer(0)
            case Command.DISABLE_A20:
                state.output_port &= ~OUTPUT_A20
            case Command.ENABLE_A20:
                state.output_port |= OUTPUT_A20
            case _ if command in READ_RAM:
                self._answer(state.ram[command - READ_RAM.start])
            case _ if command in PULSE and not command & OUTPUT_NO_RESET:
                self._requests.reset("keyboard controller")

    def _parameter(self, command: int, value: int) -> None:
        match command:
            case Command.WRITE_OUTPUT_PORT:
                self.state.output_port = value
                if not value & OUTPUT_NO_RESET:
                    self._requests.reset("keyboard controller")
            case Command.ECHO_KEYBOARD:
                self._answer(value)
            case Command.ECHO_AUX:
                self._answer(value, STATUS_AUX_OUTPUT)
            case Command.TO_AUX:
                self._answer(RESEND, STATUS_AUX_OUTPUT | STATUS_TIMEOUT)
            case Command.TO_KEYBOARD:
                # The controller enables the interface to send, as real ones do.
                self.state.ram[0] &= ~CONFIG_KEYBOARD_OFF
                self._answer(RESEND, STATUS_TIMEOUT)
            case _:
                self.state.ram[command - WRITE_RAM.start] = value

    def _update_irqs(self) -> None:
        config, flags = self.state.ram[0], self.state.output_flags
        full, aux = bool(flags & STATUS_OUTPUT_FULL), bool(flags & STATUS_AUX_OUTPUT)
        self._keyboard_irq.set_level(full and not aux and bool(config & CONFIG_KEYBOARD_IRQ))
        self._aux_irq.set_level(full and aux and bool(config & CONFIG_AUX_IRQ))

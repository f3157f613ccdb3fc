"""A write-only serial port in memory: `--append earlycon=uart8250,mmio,0xf0000000` prints to it."""

import sys
from dataclasses import dataclass

from ostler.devices.device import Device
from ostler.machine.virt import VirtBoard
from ostler.state import State

TRANSMIT, LINE_STATUS = 0, 5
TRANSMITTER_EMPTY = 0x60
DIVISOR_ACCESS = 0x80


@dataclass(slots=True)
class EarlyConsoleState(State):
    """Its top bit puts the divisor where the data register is."""

    line_control: int = 0


class EarlyConsole(Device[EarlyConsoleState]):
    """What the guest's kernel says before it has drivers goes to our standard error."""

    name, State = "early-console", EarlyConsoleState

    def __init__(self) -> None:
        self.state = EarlyConsoleState()
        self.text = ""

    def read(self, offset: int, size: int) -> int:
        return TRANSMITTER_EMPTY if offset == LINE_STATUS else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 1:
            return
        if offset == 3:
            self.state.line_control = value
        elif offset == TRANSMIT and not self.state.line_control & DIVISOR_ACCESS:
            self.text += chr(value)
            sys.stderr.write(chr(value))


def plug(board: VirtBoard) -> None:
    board.map_memory(0xF000_0000, 8, console := EarlyConsole(), "early-console")
    board.add("early-console", console)

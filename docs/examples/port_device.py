"""A printer port at 0x378: Linux's `parport_pc` and `lp` print to it by /dev/lp0."""

from dataclasses import dataclass
from pathlib import Path

from ostler.devices.device import Device
from ostler.machine.virt import VirtBoard
from ostler.state import State

DATA, STATUS, CONTROL = 0, 1, 2
READY = 0xDF  # not busy, paper in, selected, no error
STROBE = 1


@dataclass(slots=True)
class PrinterState(State):
    """The two registers that keep what is written."""

    data: int = 0
    control: int = 0


class Printer(Device[PrinterState]):
    """What is printed is appended to the file `paper`."""

    name, State = "printer", PrinterState

    def __init__(self, paper: Path) -> None:
        self.state = PrinterState()
        self.paper = paper

    def read(self, offset: int, size: int) -> int:
        registers = {DATA: self.state.data, STATUS: READY, CONTROL: self.state.control | 0xC0}
        return registers.get(offset, 0xFF)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == DATA:
            self.state.data = value & 0xFF
        elif offset == CONTROL:
            if self.state.control & ~value & STROBE:  # the strobe ends: the byte is there
                with self.paper.open("ab") as paper:
                    paper.write(bytes([self.state.data]))
            self.state.control = value & 0x3F


def plug(board: VirtBoard) -> None:
    board.map_ports(0x378, 3, printer := Printer(Path("printed.txt")), "printer")
    board.add("printer", printer)

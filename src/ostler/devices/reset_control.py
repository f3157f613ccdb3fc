"""Reset control register at port 0xCF9.

Spec: Intel I/O Controller Hub 9 data sheet, section 13.7.5. A rising edge of RST_CPU resets; what
kind SYS_RST and FULL_RST choose makes no difference to a virtual machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostler.devices.byte_registers import OPEN_BUS, ByteRegisters
from ostler.devices.requests import MachineRequests
from ostler.errors import StateError
from ostler.state import State

PORTS = 1
SYS_RST, RST_CPU, FULL_RST = 0x02, 0x04, 0x08
WRITABLE = SYS_RST | RST_CPU | FULL_RST


@dataclass(slots=True)
class ResetControlState(State):
    """The register as last written."""

    register: int = 0

    def validate(self) -> None:
        if self.register & ~WRITABLE:
            raise StateError("reset-control: register has unknown bits")


class ResetControl(ByteRegisters[ResetControlState]):
    """The register."""

    name, State = "reset-control", ResetControlState

    def __init__(self, requests: MachineRequests) -> None:
        super().__init__()
        self.state = ResetControlState()
        self._requests = requests

    def read_byte(self, offset: int) -> int:
        return self.state.register if offset == 0 else OPEN_BUS

    def write_byte(self, offset: int, value: int) -> None:
        if offset != 0:
            return
        before, self.state.register = self.state.register, value & WRITABLE
        if value & ~before & RST_CPU:
            self._requests.reset("reset control register")

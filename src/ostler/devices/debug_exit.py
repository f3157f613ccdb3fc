"""Debug exit: a write of V ends the VM with exit code `V << 1 | 1`.

Spec: QEMU's `isa-debug-exit`, which kernel developers use to report test results. The code is never
0, so that a test that ends by accident (a power-off) is told from one that reports success.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostler.devices.device import Device
from ostler.devices.requests import MachineRequests
from ostler.state import State

PORTS = 4


@dataclass(slots=True)
class DebugExitState(State):
    """There is nothing to remember."""


class DebugExit(Device[DebugExitState]):
    """The port. Reads give zero."""

    name, State = "debug-exit", DebugExitState

    def __init__(self, requests: MachineRequests) -> None:
        self.state = DebugExitState()
        self._requests = requests

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._requests.exit((value << 1 | 1) & 0xFF)

"""pvpanic: the port by which a guest's kernel says that it has panicked.

Spec: QEMU's docs/specs/pvpanic, the ISA form. Linux finds it by its ACPI device, `QEMU0001`. A read
gives the events that are understood.

Not modelled: the PCI form. A guest that has a crash kernel says so instead of panicking; it is left
alone to write its dump.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostler.devices.device import Device
from ostler.devices.requests import MachineRequests
from ostler.state import State

PORTS = 1

PANICKED = 1 << 0
CRASH_LOADED = 1 << 1


@dataclass(slots=True)
class PvpanicState(State):
    """There is nothing to remember."""


class Pvpanic(Device[PvpanicState]):
    """The port."""

    name, State = "pvpanic", PvpanicState

    def __init__(self, requests: MachineRequests) -> None:
        self.state = PvpanicState()
        self._requests = requests

    def read(self, offset: int, size: int) -> int:
        return PANICKED | CRASH_LOADED if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and value & PANICKED:
            self._requests.panic()

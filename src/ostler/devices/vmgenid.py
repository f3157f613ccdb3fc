"""vmgenid: tells a guest that it has become a copy of itself.

Spec: Microsoft's "Virtual Machine Generation ID". Sixteen random bytes lie in guest memory at an
address that an ACPI device names; they change when the machine is restored or forked, and an
interrupt that ACPI turns into a notification says so. Linux reseeds its random numbers then.

There are no registers: the device's range is empty.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from ostler.devices.device import Device, GuestMemory, IrqLine
from ostler.errors import StateError
from ostler.state import State

ID_BYTES = 16


def new_generation() -> bytes:
    """An identifier no other machine has."""
    return uuid.uuid4().bytes_le


@dataclass(slots=True)
class VmgenidState(State):
    """The identifier, as it lies in memory."""

    generation: bytes = field(default_factory=new_generation)

    def validate(self) -> None:
        """Raise `StateError` for what is no identifier."""
        if len(self.generation) != ID_BYTES:
            raise StateError(f"vmgenid: an identifier of {len(self.generation)} bytes")


class Vmgenid(Device[VmgenidState]):
    """The identifier at `gpa` of `memory`; `line` is an edge-triggered interrupt."""

    name, State = "vmgenid", VmgenidState

    def __init__(self, memory: GuestMemory, gpa: int, line: IrqLine) -> None:
        self._memory, self._gpa, self._line = memory, gpa, line
        self.replace(VmgenidState())

    def renew(self) -> None:
        """Take a new identifier and tell the guest."""
        self.replace(VmgenidState())
        self._line.set_level(True)
        self._line.set_level(False)

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Ignored."""

    def reset(self) -> None:
        """A reset makes no copy: the identifier stays."""
        self.replace(self.state)

    def replace(self, state: VmgenidState) -> None:
        """Take `state` and put it where the guest looks."""
        self.state = state
        self._memory.write(self._gpa, state.generation)

"""What a device can ask of the machine it is part of."""

from __future__ import annotations

from typing import Protocol


class MachineRequests(Protocol):
    """Wishes of the guest about the whole machine.

    Called from a vCPU thread in the middle of an access, so an implementation notes the wish and
    returns; the machine acts on it soon after.
    """

    def power_off(self) -> None:
        """The guest wants the power switched off."""

    def reset(self, source: str) -> None:
        """The guest wants a reset of the whole machine; `source` names the device it used."""

    def panic(self) -> None:
        """The guest's kernel has panicked and says so; it may never do anything again."""

    def exit(self, code: int) -> None:
        """The guest wants the process that runs it to end with exit code `code` (0..255)."""

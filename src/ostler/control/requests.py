"""What the guest and its owner ask of a machine, as messages to the thread that acts on them."""

from __future__ import annotations

import queue
from dataclasses import dataclass

from ostler.engine import Exit


@dataclass(frozen=True, slots=True)
class PowerOff:
    """The guest switched itself off."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The guest reset itself by the device `source`."""

    source: str


@dataclass(frozen=True, slots=True)
class Panic:
    """The guest's kernel has panicked."""


@dataclass(frozen=True, slots=True)
class DebugExit:
    """The guest ends the machine with exit code `code`."""

    code: int


@dataclass(frozen=True, slots=True)
class VcpuExit:
    """vCPU `id` cannot go on."""

    id: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class HostReset:
    """The machine's owner wants it to begin anew."""


@dataclass(frozen=True, slots=True)
class HostStop:
    """The machine's owner wants it gone."""


@dataclass(frozen=True, slots=True)
class HostShutdown:
    """The machine's owner wants the guest to shut down, and the machine gone after `grace_s`."""

    grace_s: float


HostRequest = HostReset | HostStop | HostShutdown
Request = PowerOff | Reset | Panic | DebugExit | VcpuExit | HostRequest
Mailbox = queue.SimpleQueue[tuple[int, Request]]


class SessionRequests:
    """`MachineRequests` of one boot: each becomes a message with the boot's number."""

    def __init__(self, mailbox: Mailbox, boot: int) -> None:
        self._mailbox, self._boot = mailbox, boot

    def power_off(self) -> None:
        self._mailbox.put((self._boot, PowerOff()))

    def reset(self, source: str) -> None:
        self._mailbox.put((self._boot, Reset(source)))

    def panic(self) -> None:
        self._mailbox.put((self._boot, Panic()))

    def exit(self, code: int) -> None:
        self._mailbox.put((self._boot, DebugExit(code)))

    def on_exit(self, id: int, exit: Exit) -> None:
        """A vCPU stopped."""
        self._mailbox.put((self._boot, VcpuExit(id, exit)))

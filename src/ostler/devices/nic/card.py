"""What emulated network cards have in common: the PCI function around a chip of the engine.

The chip's registers and rings are in the engine, which answers the guest there and moves frames
without the interpreter. What is here is configuration space, and the way of the chip's state into
the machine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from ostler.devices.device import IrqLine
from ostler.devices.pci.config_space import (
    COMMAND,
    COMMAND_INTX_DISABLE,
    COMMAND_MASTER,
    Bar,
    Identity,
    register,
)
from ostler.devices.pci.device import Connection, PciDevice, PciState, ReadWrite, Region
from ostler.devices.virtio.workers import Cable
from ostler.errors import ConfigError, StateError


class Chip(Protocol):
    """An Ethernet controller in the engine, and the thread that moves its frames."""

    def window(self, bar: int) -> ReadWrite:
        """The registers behind base address register `bar`."""

    def connect(self, line: IrqLine) -> None:
        """Have the interrupt pin drive `line`, from any thread."""

    def command(self, intx_disabled: bool, master: bool) -> None:
        """What the command register says."""

    @property
    def interrupting(self) -> bool:
        """The level of the pin, whether or not it is disabled."""

    def set_link(self, up: bool) -> None:
        """The cable has a carrier or has lost it."""

    def reset(self) -> None:
        """Return to the state after power-up."""

    def save(self) -> dict[str, list[int]]:
        """The state: words by the names of its parts."""

    def load(self, saved: dict[str, list[int]]) -> None:
        """Take a saved state; `ValueError`, and nothing has changed, when it is not the chip's."""

    def counters(self) -> Sequence[Sequence[int]]:
        """Frames, bytes, dropped and faulty frames received, and the same of those sent."""

    def stop(self) -> None:
        """End the thread."""


class Chips(Protocol):
    """Makes chips."""

    def ethernet(self, model: str, link: Any, mac: bytes) -> Chip:
        """A chip with the address `mac` on `link`, which is one of the engine's cables."""


@dataclass(slots=True)
class NicState(PciState):
    """Configuration space and the chip; empty, that is as after power-up."""

    chip: dict[str, list[int]] = field(default_factory=dict)

    def validate(self) -> None:
        """Raise `StateError` for what no chip can hold."""
        PciState.validate(self)
        if any(not 0 <= word < 1 << 32 for words in self.chip.values() for word in words):
            raise StateError(f"{type(self).__name__}: a chip's words have 32 bits")


class EmulatedNic(PciDevice[NicState]):
    """A network card with the address `mac` on `cable`."""

    abstract = True
    State = NicState

    model: ClassVar[str]
    """What the engine calls the chip."""
    identity: ClassVar[Identity]
    bars: ClassVar[tuple[Bar, ...]]

    def __init__(self, cable: Cable, chips: Chips, mac: bytes) -> None:
        self.cable = cable
        self.chip = chips.ethernet(self.model, cable, mac)
        self._connected = True
        windows = [Region(b.index, 0, b.size, self.chip.window(b.index), "nic") for b in self.bars]
        super().__init__(self.identity, self.bars, windows)

    def connect(self, connection: Connection) -> None:
        """Put the card into a slot."""
        self.chip.connect(connection.intx)
        super().connect(connection)

    def close(self) -> None:
        """End the chip's thread."""
        self.chip.stop()

    # -- state --------------------------------------------------------------------------------

    def replace(self, state: Any) -> None:
        """Take `state`; the chip follows."""
        self.check(state)
        if state.chip:
            try:
                self.chip.load(state.chip)
            except (ValueError, OverflowError) as error:
                raise StateError(f"{self.name}: {error}") from error
        else:
            self.chip.reset()
        super().replace(state)
        self.chip.set_link(self.link_up)

    def save(self) -> dict[str, Any]:
        """The state as plain data."""
        with self.lock:
            self.state.chip = self.chip.save()
            self.state.intx_level = self.chip.interrupting
            return super().save()

    def read(self, offset: int, size: int) -> int:
        """A load from configuration space, with the pin as it is now."""
        self.state.intx_level = self.chip.interrupting
        return super().read(offset, size)

    def _drive_intx(self) -> None:
        command = register(self.state.config, COMMAND, 2)
        disabled, master = command & COMMAND_INTX_DISABLE, command & COMMAND_MASTER
        self.chip.command(bool(disabled), bool(master))

    # -- the card as its owner sees it --------------------------------------------------------

    @property
    def link_up(self) -> bool:
        """Whether the guest sees a carrier."""
        return self._connected and self.cable.up

    def set_link(self, connected: bool) -> None:
        """Plug the cable in or pull it, as the guest sees it."""
        self._connected = connected
        self.link_changed()

    def link_changed(self) -> None:
        """The other end of the cable has come or gone."""
        self.chip.set_link(self.link_up)

    def announce(self) -> None:
        """Ask the driver to announce itself, for which these cards have no way."""
        raise ConfigError(f"{self.name}: only virtio cards can be asked to announce themselves")

    def counters(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Frames, bytes, dropped and faulty frames received, and the same of those sent."""
        received, sent = self.chip.counters()
        return tuple(received), tuple(sent)

"""The network cards of a running machine, as its owner sees them: `vm.net`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ostler.config import NetConfig
from ostler.devices.virtio.net import VirtioNet
from ostler.machine.networks import Network
from ostler.machine.virt import NetDevice
from ostler.net import mac


@dataclass(frozen=True, slots=True)
class Traffic:
    """One direction since the guest's start: frames, their bytes, and those that were lost.

    Frames are `dropped` when nobody takes them, and count as `errors` when they say of themselves
    what is not so.
    """

    frames: int
    bytes: int
    dropped: int
    errors: int


class NetworkCard:
    """A network card. What concerns the guest is refused once that has ended (`ConfigError`)."""

    def __init__(self, network: Network, device: Callable[[], NetDevice]) -> None:
        self._network, self._device = network, device

    @property
    def config(self) -> NetConfig:
        """What was asked for."""
        return self._network.config

    @property
    def mac(self) -> str:
        """Its address, `52:54:00:...`."""
        return mac.text(self._network.mac)

    @property
    def up(self) -> bool:
        """Whether somebody is at the other end of the cable."""
        return self._network.link.up

    @property
    def problem(self) -> str:
        """The last thing that went wrong on the host's side, or nothing."""
        return self._network.problem

    @property
    def received(self) -> Traffic:
        """What the guest got."""
        return Traffic(*self._counters()[0])

    @property
    def sent(self) -> Traffic:
        """What the guest sent."""
        return Traffic(*self._counters()[1])

    @property
    def vhost(self) -> bool:
        """Whether the host's kernel moves the frames (vhost-net)."""
        device = self._device()
        return isinstance(device, VirtioNet) and device.served_by_kernel

    def _counters(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        backend = self._network.backend
        counted = backend.traffic() if backend and self.vhost else None
        return counted or self._device().counters()

    def set_link(self, connected: bool) -> None:
        """Plug the cable in or pull it, as the guest sees it."""
        self._device().set_link(connected)

    def announce(self) -> None:
        """Have the guest tell the network where it is; `ConfigError` where the card is emulated."""
        self._device().announce()

    def __repr__(self) -> str:
        state = "up" if self.up else "down"
        return f"<NetworkCard {self.mac} {str(self.config).removeprefix('--net ')} {state}>"

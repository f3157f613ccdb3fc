"""What every back-end is: something at the other end of a guest's cable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self


class Link(Protocol):
    """A cable's host end in the engine, where frames are moved."""

    @property
    def up(self) -> bool:
        """Whether somebody is at the other end."""

    def attach(self, fd: int) -> None:
        """Take the stream socket `fd`, which is duplicated, as the peer."""

    def detach(self) -> None:
        """Let go of the peer; of a tap device for good."""

    def captured(self, fd: int) -> Self:
        """The same link, with a copy of every frame in the file `fd`."""

    def served_by_kernel(self) -> Self:
        """The same tap device, whose frames the kernel moves (vhost-net).

        `OSError` when the host has no vhost-net, or refuses.
        """

    def completing_handshakes(self, gateway: bytes) -> Self:
        """The same link, which acknowledges the guest's SYN-ACKs in place of its peer, and answers
        pings of the IPv4 address `gateway`.
        """


class Switch(Protocol):
    """An Ethernet switch in the engine."""

    def port(self) -> Link:
        """A new port."""


class Links(Protocol):
    """Makes links; descriptors are duplicated, `OSError` when the host refuses."""

    def tap(self, fds: Sequence[int]) -> Link:
        """A tap device, opened once for each pair of queues."""

    def stream(self, jumbo: bool) -> Link:
        """A stream socket that `attach` gives its peer; a jumbo one takes 64 KiB at once."""

    def datagram(self, fd: int) -> Link:
        """A connected datagram socket."""

    def switch(self) -> Switch:
        """A switch."""


class Monitor(Protocol):
    """A thread that waits for the host's events."""

    def watch(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        """Call back whenever `fd` has one of the `poll` events, until it is forgotten."""

    def forget(self, fd: int) -> None:
        """Do not look at `fd` any more; before it is closed."""

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once."""


class Events(Protocol):
    """What a back-end has to tell while the guest runs; from any thread."""

    def report(self, text: str) -> None:
        """Something the user should know, as one line."""

    def changed(self) -> None:
        """The link has come up or gone down."""


class Backend:
    """Base of the back-ends: made when the machine is opened, closed after the guest's end."""

    link: Link
    mtu: int = 0
    """What the guest's driver should use at most; 0 where it may decide."""

    def traffic(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """What the host counted: frames, bytes, dropped and faulty frames that the guest received,
        then the same of those it sent; `None` where the host counts nothing.
        """
        return None

    def close(self) -> None:
        """Give back what is the host's."""

"""The engine's links, as the network back-ends ask for them."""

from __future__ import annotations

from collections.abc import Sequence

from ostler._native import NetLink, NetSwitch


class NetLinks:
    """Makes links; descriptors are duplicated, `OSError` when the host refuses."""

    def tap(self, fds: Sequence[int]) -> NetLink:
        """A tap device, opened once for each pair of queues."""
        return NetLink.tap(fds)

    def stream(self, jumbo: bool) -> NetLink:
        """A stream socket that `attach` gives its peer; a jumbo one takes 64 KiB at once."""
        return NetLink.stream(jumbo)

    def datagram(self, fd: int) -> NetLink:
        """A connected datagram socket."""
        return NetLink.datagram(fd)

    def switch(self) -> NetSwitch:
        """A switch."""
        return NetSwitch()

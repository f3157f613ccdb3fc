"""TUN: network interfaces of the host that end in a guest."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.checks.vhost import character_device
from ostler.host.report import Finding
from ostler.host.view import HostView


def check(host: HostView) -> Iterator[Finding]:
    """`/dev/net/tun`."""
    yield character_device(host, "/dev/net/tun", "tun")

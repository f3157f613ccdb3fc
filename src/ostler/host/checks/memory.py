"""Memory: how much is free, swap, and how the host takes promises."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.admission import NEVER_OVERCOMMIT, free_bytes, rounded
from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView, meminfo


def check(host: HostView) -> Iterator[Finding]:
    """What guests can fill, and what happens when they want more."""
    free = free_bytes(host)
    if free is not None:
        yield passed("memory", f"guests can fill {rounded(free)}, swap included")
    yield _swap(host)
    yield _overcommit(host)


def _swap(host: HostView) -> Finding:
    total = meminfo(host).get("SwapTotal", 0)
    if total:
        return passed("swap", rounded(total))
    return warned(
        "swap",
        "none, so guests that want more memory than there is are killed, not slowed",
        "fallocate -l 8G /swap && chmod 600 /swap && mkswap /swap && swapon /swap",
    )


def _overcommit(host: HostView) -> Finding:
    mode = host.number("/proc/sys/vm/overcommit_memory")
    if mode == NEVER_OVERCOMMIT:
        return warned(
            "overcommit",
            "never (2): a guest's memory counts in full when it starts",
            "sysctl vm.overcommit_memory=0",
        )
    return passed("overcommit", "guests take memory when they touch it")

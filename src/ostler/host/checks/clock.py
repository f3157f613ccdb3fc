"""The host's clock source: what reading the time costs, here and in guests."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
# Read without leaving user mode.
FAST = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page")


def check(host: HostView) -> Iterator[Finding]:
    """Whether it is one that is read without a system call."""
    source = host.text(SOURCE)
    if source in FAST:
        yield passed("clock source", source)
    else:
        yield warned(
            "clock source",
            f"{source or 'unknown'}, so each look at the time is a system call",
            "see in dmesg why the TSC was given up; boot with tsc=reliable if you know better",
        )

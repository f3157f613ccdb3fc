"""Kernel samepage merging: like guests share pages."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

RUN = "/sys/kernel/mm/ksm/run"
MERGING = 1


def check(host: HostView) -> Iterator[Finding]:
    """Whether it runs, and what it shares."""
    run = host.number(RUN)
    if run is None:
        yield warned("KSM", "the kernel was built without", "use a kernel with CONFIG_KSM")
    elif run != MERGING:
        yield warned("KSM", "off, so like guests share no memory", f"echo 1 > {RUN}")
    else:
        sharing = host.number("/sys/kernel/mm/ksm/pages_sharing") or 0
        yield passed("KSM", f"on, {sharing} pages saved at this moment")

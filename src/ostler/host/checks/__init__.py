"""What is looked at, one kind of check a file; each is a function of a `HostView`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ostler.host.checks import (
    capabilities,
    cgroups,
    clock,
    confinement,
    cpu,
    device,
    huge_pages,
    io_uring,
    iommu,
    ksm,
    limits,
    memory,
    module,
    nested,
    speed,
    tun,
    userfaultfd,
    vhost,
)
from ostler.host.report import Finding
from ostler.host.view import HostView

Check = Callable[[HostView], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    cpu.check,
    module.check,
    nested.check,
    device.check,
    capabilities.check,
    speed.check,
    huge_pages.check,
    ksm.check,
    memory.check,
    iommu.check,
    vhost.check,
    tun.check,
    userfaultfd.check,
    io_uring.check,
    cgroups.check,
    confinement.check,
    clock.check,
    limits.check,
)

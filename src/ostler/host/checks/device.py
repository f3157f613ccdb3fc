"""`/dev/kvm`, and whether this user may open it."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ostler.host.report import Finding, failed, passed
from ostler.host.view import HostView

DEVICE = "/dev/kvm"
NOT_THERE = (errno.ENOENT, errno.ENXIO, errno.ENODEV)


def check(host: HostView) -> Iterator[Finding]:
    """Open it, as a VM would."""
    error = host.open_error(DEVICE)
    if error is None:
        yield passed(DEVICE, "this user may open it")
    elif error.errno in NOT_THERE:
        yield failed(DEVICE, "it is not there", "modprobe kvm_intel (or kvm_amd)")
    elif error.errno in (errno.EACCES, errno.EPERM):
        cure = "usermod -aG kvm USER, then log in again"
        yield failed(DEVICE, "this user may not open it", cure)
    else:
        yield failed(DEVICE, f"it cannot be opened: {error.strerror}", "see what dmesg says of kvm")

"""io_uring: many disk requests with few system calls."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView


def check(host: HostView) -> Iterator[Finding]:
    """Ask the kernel for a ring."""
    error = host.io_uring_error()
    if error is None:
        yield passed("io_uring", "this user may have it")
        return
    disabled = host.number("/proc/sys/kernel/io_uring_disabled")
    cure = "sysctl kernel.io_uring_disabled=0" if disabled else "allow it in the seccomp filter"
    yield warned("io_uring", f"{error.strerror}: disks use plain system calls", cure)

"""userfaultfd: memory that arrives when it is touched (restore, post-copy)."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView


def check(host: HostView) -> Iterator[Finding]:
    """Ask the kernel for one that also hears of the kernel's own accesses."""
    error = host.userfaultfd_error()
    if error is None:
        yield passed("userfaultfd", "this user may have it")
    else:
        yield warned(
            "userfaultfd",
            f"{error.strerror}: guests are restored and migrated with their memory in one piece",
            "sysctl vm.unprivileged_userfaultfd=1, or setfacl -m u:USER:rw /dev/userfaultfd",
        )

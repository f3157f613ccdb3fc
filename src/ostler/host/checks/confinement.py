"""What a VM's process can be confined with: Landlock and seccomp."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

ACTIONS = "/proc/sys/kernel/seccomp/actions_avail"


def check(host: HostView) -> Iterator[Finding]:
    """Both of them."""
    abi = host.landlock_abi()
    if isinstance(abi, OSError):
        yield warned(
            "Landlock", f"{abi.strerror}", "boot with lsm=landlock,... on a kernel from 5.13 on"
        )
    else:
        yield passed("Landlock", f"version {abi}")
    if "kill_process" in (host.text(ACTIONS) or "").split():
        yield passed("seccomp", "filters that end a process")
    else:
        yield warned("seccomp", "no filters", "use a kernel with CONFIG_SECCOMP_FILTER")

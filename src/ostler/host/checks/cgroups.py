"""Control groups: bounds on what a VM's process takes."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

ROOT = "/sys/fs/cgroup"
WANTED = ("cpu", "cpuset", "io", "memory", "pids")


def check(host: HostView) -> Iterator[Finding]:
    """The controllers of version 2."""
    controllers = host.text(f"{ROOT}/cgroup.controllers")
    if controllers is None:
        yield warned(
            "control groups",
            "version 2 is not mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 none /sys/fs/cgroup",
        )
        return
    missing = [name for name in WANTED if name not in controllers.split()]
    if missing:
        yield warned(
            "control groups",
            f"version 2 without {', '.join(missing)}",
            f"echo +{' +'.join(missing)} > {ROOT}/cgroup.subtree_control, in the group above",
        )
    else:
        yield passed("control groups", f"version 2 with {', '.join(WANTED)}")

"""Control groups: bounds on what a VM's process takes."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

ROOT = "/sys/fs/cgroup"
WANTED = ("cpu", "cpuset", "io", "memory", "pids")
UNIFY = "boot with systemd.unified_cgroup_hierarchy=1"


def check(host: HostView) -> Iterator[Finding]:
    """The controllers of version 2, or what there is instead."""
    controllers = host.text(f"{ROOT}/cgroup.controllers")
    if controllers is None:
        yield _without(host)
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


def _without(host: HostView) -> Finding:
    old = [name for name in ("cpu", "cpuset", "memory", "pids") if name in host.names(ROOT)]
    if old:
        said = f"version 1 ({', '.join(old)}), so a machine is bounded group by group"
        return warned("control groups", said, UNIFY)
    cure = f"mount -t cgroup2 none {ROOT}, or {UNIFY}"
    return warned("control groups", "not mounted, so no machine can be bounded", cure)

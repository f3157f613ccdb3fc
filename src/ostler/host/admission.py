"""Whether the host can give a guest the memory that it is asked for.

Guest memory is mapped without being reserved, so a guest may well have more of it than the host: it
takes only what it touches. What cannot be mapped at all is refused before anything is built, and so
is a guest in which Linux's own tables fill the host, unless it is forced; what can be mapped but
not filled is said, as the host ends whom it cannot serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from ostler.config import MemoryConfig, format_size
from ostler.errors import HostError
from ostler.host.view import HostView, meminfo

NEVER_OVERCOMMIT = 2
# Linux keeps 64 bytes for each page of 4096, and writes them when it starts.
LINUX_OWN_SHARE = 64


def admit_memory(memory: MemoryConfig, host: HostView) -> str | None:
    """A warning where the host cannot fill that much.

    `HostError` when it cannot map it, or could not even start Linux in it and `force` is not set.
    """
    size_bytes = memory.size_bytes
    for limit, cause, cure in _limits(host):
        if size_bytes > limit:
            raise HostError(
                f"--memory {format_size(size_bytes)}: the host cannot map that much memory:"
                f" {cause}; give the guest less, or {cure}"
            )
    there_is = free_bytes(host)
    if there_is is None or size_bytes <= there_is:
        return None
    own = size_bytes // LINUX_OWN_SHARE
    if own > there_is and not memory.force:
        size = format_size(size_bytes)
        raise HostError(
            f"--memory {size}: Linux fills {rounded(own)} of it at its start, and this host has"
            f" {rounded(there_is)} free, swap included; give the guest less, or for a guest that is"
            f" not Linux say --memory {size},force=on"
        )
    linux = f"; Linux fills {rounded(own)} of it at its start" if own > there_is // 2 else ""
    return (
        f"warning: --memory {format_size(size_bytes)} is more than the {rounded(there_is)} that"
        f" this host has free, swap included{linux}: a guest that fills it is killed;"
        " give less or add swap"
    )


def free_bytes(host: HostView) -> int | None:
    """What can be filled before somebody is killed: free and reclaimable memory, and free swap.

    No more than the control groups of this process may have. `None` where nothing says it.
    """
    info = meminfo(host)
    if "MemAvailable" not in info:
        return None
    return min([info["MemAvailable"] + info.get("SwapFree", 0), *_cgroup_limits(host)])


def rounded(size_bytes: int) -> str:
    """`22.4G`: a size for people, where `format_size` is for machines."""
    size, unit = float(size_bytes), ""
    for unit in ("", "K", "M", "G", "T"):
        if size < 1024 or unit == "T":
            break
        size /= 1024
    return f"{size:.0f}{unit}" if size >= 100 or size == int(size) else f"{size:.1f}{unit}"


def _limits(host: HostView) -> Iterator[tuple[int, str, str]]:
    """What bounds a mapping: bytes, cause and cure."""
    address_space = host.limit("address space")
    if address_space is not None:
        said = f"this process may have {rounded(address_space)} of address space (ulimit -v)"
        yield address_space, said, "raise that limit"
    if host.number("/proc/sys/vm/overcommit_memory") == NEVER_OVERCOMMIT:
        info = meminfo(host)
        left = max(info.get("CommitLimit", 0) - info.get("Committed_AS", 0), 0)
        said = f"it promises no more than it has (vm.overcommit_memory=2), which is {rounded(left)}"
        yield left, said, "run sysctl vm.overcommit_memory=0"


def _cgroup_limits(host: HostView) -> Iterator[int]:
    """What each control group around this process may have of memory, both versions.

    Not less what they use: that counts the page cache, which the kernel gives up when asked.
    """
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, limit = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        elif not controllers:
            root, limit = "/sys/fs/cgroup", "memory.max"
        else:
            continue
        group = PurePosixPath(root + path)
        for at in (group, *group.parents):
            most = host.number(f"{at}/{limit}")
            if most is not None:
                yield most

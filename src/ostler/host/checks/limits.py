"""Limits of this process that large guests run into."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.admission import rounded
from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

# A guest of 512 CPUs with 64 disks has 3 descriptors for each queue and some for each CPU.
FILES = 4096
# The threads of 1,000 small guests.
PROCESSES = 8192


def check(host: HostView) -> Iterator[Finding]:
    """Descriptors, threads, locked memory, address space."""
    yield _at_least(host, "open files", FILES, "ulimit -n 65536")
    yield _at_least(host, "processes", PROCESSES, "ulimit -u unlimited")
    yield _locked(host)
    address_space = host.limit("address space")
    if address_space is not None:
        said = f"{rounded(address_space)}, which bounds a guest's memory"
        yield warned("limit on address space", said, "ulimit -v unlimited")


def _at_least(host: HostView, name: str, wanted: int, cure: str) -> Finding:
    limit = host.limit(name)
    if limit is None or limit >= wanted:
        return passed(f"limit on {name}", "none" if limit is None else f"{limit}")
    return warned(f"limit on {name}", f"{limit}, large guests need {wanted}", cure)


def _locked(host: HostView) -> Finding:
    limit = host.limit("locked memory")
    if limit is None:
        return passed("limit on locked memory", "none")
    said = f"{rounded(limit)}, so no device can be passed to a guest that has more"
    return warned("limit on locked memory", said, "ulimit -l unlimited, for those guests")

"""Huge pages: the reserved pools, and the transparent ones."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

POOLS = "/sys/kernel/mm/hugepages"
TRANSPARENT = "/sys/kernel/mm/transparent_hugepage"


def check(host: HostView) -> Iterator[Finding]:
    """What there is of both."""
    yield _transparent(host)
    yield _pools(host)


def _transparent(host: HostView) -> Finding:
    mode = chosen(host.text(f"{TRANSPARENT}/enabled"))
    if mode in ("always", "madvise"):
        return passed("transparent huge pages", mode)
    return warned(
        "transparent huge pages",
        "never" if mode else "the kernel was built without",
        f"echo madvise > {TRANSPARENT}/enabled" if mode else "use a kernel with them",
    )


def _pools(host: HostView) -> Finding:
    pools = [_pool(host, name) for name in host.names(POOLS)]
    filled = [text for text in pools if text]
    if filled:
        return passed("huge page pools", ", ".join(filled))
    return warned(
        "huge page pools",
        "empty, so a guest cannot be given reserved huge pages",
        "sysctl vm.nr_hugepages=N for N times 2M, if you want that",
    )


def _pool(host: HostView, name: str) -> str:
    total = host.number(f"{POOLS}/{name}/nr_hugepages") or 0
    free = host.number(f"{POOLS}/{name}/free_hugepages") or 0
    return f"{free} of {total} pages of {name.removeprefix('hugepages-')} free" if total else ""


def chosen(text: str | None) -> str | None:
    """The word in brackets: how the kernel shows a choice."""
    for word in (text or "").split():
        if word.startswith("["):
            return word.strip("[]")
    return None

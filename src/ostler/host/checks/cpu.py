"""The processor: hardware virtualization, and page tables for guests."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, failed, passed, warned
from ostler.host.view import HostView

# The flag of /proc/cpuinfo, its name, and the flag and name of its nested page tables.
EXTENSIONS = (("vmx", "Intel VT-x", "ept", "EPT"), ("svm", "AMD-V (SVM)", "npt", "NPT"))
MACHINE = "enable VT-x or SVM in the firmware, or in a VM ask its host for nested virtualization"


def check(host: HostView) -> Iterator[Finding]:
    """Which extension there is, and whether it walks the guests' page tables."""
    flags = cpu_flags(host)
    for flag, name, tables, tables_name in EXTENSIONS:
        if flag in flags:
            yield passed("CPU virtualization", name)
            yield _nested_tables(tables in flags, tables_name)
            return
    yield failed("CPU virtualization", "the CPU offers neither VMX nor SVM", MACHINE)
    yield warned("nested page tables", "none without VMX or SVM", MACHINE)


def _nested_tables(there: bool, name: str) -> Finding:
    if there:
        return passed("nested page tables", name)
    return warned(
        "nested page tables",
        f"the CPU has no {name}, so guests that change page tables are slow",
        "use a newer CPU",
    )


def cpu_flags(host: HostView) -> set[str]:
    """The flags of the first processor in `/proc/cpuinfo`."""
    for line in (host.text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return set(value.split())
    return set()

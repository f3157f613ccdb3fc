"""KVM's table of capabilities (`KVM_CHECK_EXTENSION`)."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, failed, passed, warned
from ostler.host.view import HostView

# What a VM on `kvm` needs is refused by the accelerator itself; these make it better.
WANTED = {
    "XSAVE2": "guests with AMX",
    "MANUAL_DIRTY_LOG_PROTECT2": "migration of large guests",
    "DIRTY_LOG_RING_ACQ_REL": "migration of large guests",
    "COALESCED_PIO": "fewer exits for writes to index registers",
    "SPLIT_IRQCHIP": "interrupt controllers in user space",
    "X2APIC_API": "more than 255 CPUs",
    "TSC_DEADLINE_TIMER": "cheap timers",
    "BINARY_STATS_FD": "statistics by exit reason",
    "IRQFD_RESAMPLE": "level interrupts without an exit",
    "HALT_POLL": "a bound on polling before sleep",
    "SREGS2": "32-bit PAE guests restored exactly",
}


def check(host: HostView) -> Iterator[Finding]:
    """Which of those that are used are there."""
    table = host.kvm_capabilities()
    if isinstance(table, str):
        yield failed("KVM capabilities", f"none ({table})", "see /dev/kvm above")
        return
    missing = [name for name in WANTED if table.get(name, 0) <= 0]
    numbers = f"{table.get('MAX_VCPUS', 0)} CPUs and {table.get('NR_MEMSLOTS', 0)} memory slots"
    if missing:
        lost = "; ".join(sorted({f"{WANTED[name]} ({name})" for name in missing}))
        yield warned("KVM capabilities", f"{numbers} a guest; without {lost}", "use a newer kernel")
    else:
        yield passed("KVM capabilities", f"{numbers} a guest, and all that is used")

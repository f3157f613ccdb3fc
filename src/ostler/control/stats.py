"""Where the time of a guest's CPUs goes, and what they needed somebody for.

KVM gives Linux three modes, and a vCPU's thread spends its time in one of them: guest mode, where
guest code runs; kernel mode, where the kernel answers; user mode, where this process does. Under
`kvm` the host's own accounting says which (proc(5), `guest_time`). The software CPU is a part of
this process, so there guest mode is what remains when the kernel's share and that of devices
written in Python are taken away.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from ostler.control.kvm_stats import read_scalars
from ostler.engine import Vcpu, VirtualMachine

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """The host's accounting of one thread, in seconds.

    `running_s` is exact; the three others are in ticks of a hundredth. `user_s` includes `guest_s`.
    """

    running_s: float = 0
    waiting_s: float = 0
    user_s: float = 0
    kernel_s: float = 0
    guest_s: float = 0

    @classmethod
    def parse(cls, stat: str, schedstat: str) -> Self:
        """From `/proc/PID/task/TID/stat` (proc(5)) and `schedstat` beside it."""
        # The name, in parentheses, may hold blanks and parentheses; what follows does not.
        values = stat.rpartition(")")[2].split()
        user, kernel, guest = (int(values[field - 3]) / TICKS_PER_S for field in (14, 15, 43))
        running, waiting = (int(value) / NS_PER_S for value in schedstat.split()[:2])
        return cls(running, waiting, user, kernel, guest)

    @classmethod
    def of(cls, thread: int) -> Self:
        """Of a thread of this process; zeros where it has ended."""
        try:
            with (
                open(f"/proc/self/task/{thread}/stat") as stat,
                open(f"/proc/self/task/{thread}/schedstat") as schedstat,
            ):
                return cls.parse(stat.read(), schedstat.read())
        except (FileNotFoundError, ProcessLookupError):
            return cls()


@dataclass(frozen=True, slots=True)
class VcpuStats:
    """One vCPU since its machine was started; times in seconds of its thread.

    `guest_s`, `kernel_s` and `user_s` are the CPU time in the three modes; `waiting_s` is the time
    in which it wanted to run and the host had no CPU for it; the rest it slept. `exits` counts by
    reason what the accelerator could not finish by itself, `devices` the accesses among them by
    who answered; `nobody` is the open bus. `kernel` is what KVM counts, with the kernel's names:
    all exits (`exits`), and those that it finished itself (`halt_exits`, `irq_exits`...).
    """

    id: int
    guest_s: float = 0
    kernel_s: float = 0
    user_s: float = 0
    waiting_s: float = 0
    exits: dict[str, int] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    kernel: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: VcpuStats) -> VcpuStats:
        """Of two boots, or of two vCPUs; the number is the first one's."""
        return VcpuStats(
            self.id,
            self.guest_s + other.guest_s,
            self.kernel_s + other.kernel_s,
            self.user_s + other.user_s,
            self.waiting_s + other.waiting_s,
            dict(Counter(self.exits) + Counter(other.exits)),
            dict(Counter(self.devices) + Counter(other.devices)),
            dict(Counter(self.kernel) + Counter(other.kernel)),
        )


@dataclass(frozen=True, slots=True)
class VmStats:
    """A machine since it was started: which accelerator, and its vCPUs in order.

    `kernel` is what KVM counts of the machine as a whole: `remote_tlb_flush`, `mmu_cache_miss`...
    """

    accelerator: str
    vcpus: tuple[VcpuStats, ...] = ()
    kernel: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> VcpuStats:
        """All vCPUs taken together."""
        return sum(self.vcpus, VcpuStats(-1))

    def __add__(self, other: VmStats) -> VmStats:
        """Of one boot and the next, which has as many vCPUs."""
        if not self.vcpus:
            return other
        pairs = zip(self.vcpus, other.vcpus, strict=True)
        kernel = dict(Counter(self.kernel) + Counter(other.kernel))
        return VmStats(other.accelerator, tuple(before + now for before, now in pairs), kernel)


def collect(vm: VirtualMachine, vcpus: Iterable[Vcpu]) -> VmStats:
    """What is known of `vm` and its `vcpus` now; their threads may run."""
    name = vm.accelerator
    each = tuple(_vcpu(name, vcpu) for vcpu in vcpus)
    return VmStats(name, each, _kernel(vm.statistics_fd))


def _vcpu(accelerator: str, vcpu: Vcpu) -> VcpuStats:
    times = ThreadTimes() if vcpu.thread is None else ThreadTimes.of(vcpu.thread)
    guest_s, kernel_s, user_s = modes(accelerator, times, vcpu.decision_ns / NS_PER_S)
    return VcpuStats(
        vcpu.id, guest_s, kernel_s, user_s, times.waiting_s,
        _counted(vcpu.counters),
        vcpu.device_accesses,
        _kernel(vcpu.statistics_fd),
    )  # fmt: skip


def _kernel(statistics_fd: int | None) -> dict[str, int]:
    """What the kernel counts, where it does."""
    return {} if statistics_fd is None else _counted(read_scalars(statistics_fd))


def _counted(counts: dict[str, int]) -> dict[str, int]:
    """Those that are not zero."""
    return {name: count for name, count in counts.items() if count}


def modes(accelerator: str, times: ThreadTimes, decision_s: float) -> tuple[float, float, float]:
    """Seconds in guest, kernel and user mode; `decision_s` is the share of devices in Python."""
    if accelerator == "kvm":
        return times.guest_s, times.kernel_s, max(times.user_s - times.guest_s, 0)
    kernel_s = min(times.kernel_s, times.running_s)
    user_s = min(decision_s, times.running_s - kernel_s)
    return times.running_s - kernel_s - user_s, kernel_s, user_s


def format_stats(stats: VmStats) -> str:
    """A table of the vCPUs, then exits and devices by number; several lines."""
    rows: list[tuple[str, ...]] = [("", "guest", "kernel", "user", "waiting")]
    rows += [_row(f"vcpu{vcpu.id}", vcpu) for vcpu in stats.vcpus]
    if len(stats.vcpus) > 1:
        rows.append(_row("all", stats.total))
    lines = [f"{name:<8}" + "".join(f"{cell:>11}" for cell in cells) for name, *cells in rows]
    total = stats.total
    named = (
        ("exits", total.exits),
        ("devices", total.devices),
        ("kernel", total.kernel),
        ("machine", stats.kernel),
    )
    for title, counts in named:
        if counts:
            most = sorted(counts.items(), key=lambda entry: -entry[1])
            lines.append(f"{title:<10}" + ", ".join(f"{name} {count:,}" for name, count in most))
    return "\n".join([f"accelerator {stats.accelerator}; seconds of CPU time", *lines])


def _row(name: str, vcpu: VcpuStats) -> tuple[str, ...]:
    seconds = (vcpu.guest_s, vcpu.kernel_s, vcpu.user_s, vcpu.waiting_s)
    return name, *(f"{value:.2f}" for value in seconds)

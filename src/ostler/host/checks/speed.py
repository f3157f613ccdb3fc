"""How fast `/dev/kvm` runs a guest's kernel: measured, as its presence says nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, failed, passed, warned
from ostler.host.view import HostView

SLOW_EXIT_NS = 20_000


def check(host: HostView) -> Iterator[Finding]:
    """Time a loop in ring 0, and exits."""
    speed = host.kvm_speed()
    if isinstance(speed, str):
        yield failed("kernel-mode speed", f"nothing to measure ({speed})", "see /dev/kvm above")
        return
    said = f"{speed.mips:,.0f} million instructions/s, {speed.exit_ns / 1000:.1f} us an exit"
    if speed.emulated:
        yield failed(
            "kernel-mode speed",
            f"{speed.mips:.1f} million instructions/s: /dev/kvm emulates kernel mode here",
            "use --accel soft (auto does), or a host with hardware virtualization",
        )
    elif speed.exit_ns > SLOW_EXIT_NS:
        cure = "expect slow I/O: this host is a guest itself, use one that is not"
        yield warned("kernel-mode speed", said, cure)
    else:
        yield passed("kernel-mode speed", said)

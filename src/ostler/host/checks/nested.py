"""Whether guests may be hosts themselves."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.checks.module import HARDWARE, is_on, vendor_module
from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView


def check(host: HostView) -> Iterator[Finding]:
    """The module's `nested` parameter."""
    module = vendor_module(host)
    if module not in HARDWARE:
        yield warned(
            "nested virtualization",
            "guests cannot run virtual machines of their own",
            "it takes kvm_intel or kvm_amd",
        )
    elif is_on(host, module, "nested"):
        yield passed("nested virtualization", "guests can run virtual machines of their own")
    else:
        yield warned(
            "nested virtualization",
            "guests cannot run virtual machines of their own",
            f"modprobe -r {module} && modprobe {module} nested=1",
        )

"""The kernel's KVM: which module, and its parameters."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, failed, passed, warned
from ostler.host.view import HostView

HARDWARE = ("kvm_intel", "kvm_amd")
# What makes guests much slower when it is off; `True` means that the parameter should be.
WANTED = {
    "kvm_intel": {"ept": True, "unrestricted_guest": True, "flexpriority": True},
    "kvm_amd": {"npt": True},
}
TRUE = ("Y", "1")


def check(host: HostView) -> Iterator[Finding]:
    """The module that runs guests, and whether somebody switched off what makes it fast."""
    module = vendor_module(host)
    if module is None:
        yield failed(
            "KVM module",
            "neither kvm_intel nor kvm_amd is loaded",
            "modprobe kvm_intel (or kvm_amd)",
        )
        return
    if module not in HARDWARE:
        yield warned(
            "KVM module",
            f"{module}, which is not one for VMX or SVM",
            "trust the measured speed below, not the presence of /dev/kvm",
        )
        return
    off = [name for name in WANTED[module] if is_on(host, module, name) is False]
    if off:
        again = " ".join(f"{name}=1" for name in off)
        yield warned(
            "KVM module",
            f"{module} with {', '.join(off)} off",
            f"modprobe -r {module} && modprobe {module} {again}",
        )
        return
    yield passed("KVM module", module)


def vendor_module(host: HostView) -> str | None:
    """The module beneath `kvm`, those for hardware first."""
    loaded = [name for name in host.names("/sys/module") if name.startswith("kvm_")]
    return next((name for name in HARDWARE if name in loaded), next(iter(loaded), None))


def is_on(host: HostView, module: str, parameter: str) -> bool | None:
    """A parameter of a loaded module; `None` where it has none of that name."""
    text = host.text(f"/sys/module/{module}/parameters/{parameter}")
    return None if text is None else text in TRUE

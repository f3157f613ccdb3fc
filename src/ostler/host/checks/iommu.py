"""The IOMMU, which passing devices to guests takes."""

from __future__ import annotations

from collections.abc import Iterator

from ostler.host.report import Finding, passed, warned
from ostler.host.view import HostView

GROUPS = "/sys/kernel/iommu_groups"


def check(host: HostView) -> Iterator[Finding]:
    """How many groups of devices it can tell apart."""
    groups = host.names(GROUPS)
    if groups:
        vfio = "" if host.exists("/dev/vfio/vfio") else "; modprobe vfio-pci before you pass one on"
        yield passed("IOMMU", f"{len(groups)} groups of devices{vfio}")
    else:
        yield warned(
            "IOMMU",
            "none, so no device can be passed to a guest",
            "enable VT-d or AMD-Vi in the firmware, on Intel boot with intel_iommu=on",
        )

"""The processors of a boot, as firmware would leave them."""

import pytest

from ostler.config import CpuConfig
from ostler.control.accelerator import new_machine
from ostler.control.session import create_vcpus

EXTD = 1 << 10


@pytest.mark.parametrize(("count", "is_x2apic"), [(255, False), (256, True)])
def test_more_cpus_than_an_xapic_numbers_start_in_x2apic_mode(count: int, is_x2apic: bool) -> None:
    vm = new_machine("soft")
    vm.create_irqchip()
    try:
        vcpus = create_vcpus(vm, CpuConfig(count))
        modes = {vcpu.sregs.apic_base & EXTD != 0 for vcpu in (vcpus[0], vcpus[-1])}
        assert modes == {is_x2apic}
    finally:
        vm.close()

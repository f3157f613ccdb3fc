"""Beyond the plain register sets: several MSRs at once, the TSC's rate, PAE's pointers."""

from __future__ import annotations

from contextlib import suppress

import pytest
from engine_guest import HLT, guest, lacks

from ostler.engine import Vcpu, VirtualMachine
from ostler.errors import HostError, StateError

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")

STAR, LSTAR, SYSENTER_EIP, NONE = 0xC000_0081, 0xC000_0082, 0x176, 0x1234_5678
NOT_CANONICAL = 1 << 63
PDPTES = 0x3000


@pytest.fixture
def vcpu() -> Vcpu:
    return guest(HLT)[1]


def test_msrs_go_on_after_one_that_is_refused_and_name_it(vcpu: Vcpu) -> None:
    wanted = {STAR: 0x1_0000, NONE: 1, LSTAR: NOT_CANONICAL, SYSENTER_EIP: 0x5000}
    refused = vcpu.set_msrs(wanted, keep_going=True)
    assert refused.keys() == {NONE, LSTAR}
    assert refused[NONE] == "MSR 0x12345678 does not exist here"
    assert refused[LSTAR] == "MSR 0xc0000082 does not take the value 0x8000000000000000"
    assert (vcpu.msr(STAR), vcpu.msr(SYSENTER_EIP)) == (0x1_0000, 0x5000)


def test_msrs_refused_without_keep_going_is_an_error_with_the_first(vcpu: Vcpu) -> None:
    with pytest.raises(StateError, match="MSR 0x12345678 does not exist here"):
        vcpu.set_msrs({NONE: 1, STAR: 0x2_0000})
    assert vcpu.msr(STAR) == 0x2_0000
    assert vcpu.set_msrs({STAR: 0x3_0000}) == {}


def test_msrs_of_a_vcpu_go_into_another(vcpu: Vcpu) -> None:
    saved = vcpu.msrs()
    refused = guest(HLT)[1].set_msrs(saved, keep_going=True)
    # Read-only or optional ones of KVM's own (0x4b564d..), by the kernel's version.
    assert not {index for index in refused if index >> 8 != 0x4B564D}


def test_tsc_rate_reads_back_and_a_rate_out_of_reach_is_refused(vcpu: Vcpu) -> None:
    rate = vcpu.tsc_khz
    assert rate > 100_000
    vcpu.tsc_khz = rate
    assert vcpu.tsc_khz == rate
    with suppress(HostError):  # a CPU that scales it does that, too
        vcpu.tsc_khz = rate // 3
        rate = vcpu.tsc_khz
    with pytest.raises(HostError, match=f"counts at {rate} kHz here, and cannot be made to at 1;"):
        vcpu.tsc_khz = 1
    assert vcpu.tsc_khz == rate


def pae(vm: VirtualMachine, vcpu: Vcpu) -> None:
    """Turn on PAE paging, with four pointers in memory."""
    for index in range(4):
        vm.memory.write(PDPTES + 8 * index, (0x4001 + 0x1000 * index).to_bytes(8, "little"))
    sregs = vcpu.sregs
    sregs.cr3, sregs.cr4, sregs.efer = PDPTES, 1 << 5, 0
    sregs.cr0 |= 1 << 31 | 1
    vcpu.sregs = sregs


def test_page_directory_pointers_are_state_of_their_own() -> None:
    vm, vcpu = guest(HLT)
    assert vcpu.sregs.pdptrs is None
    pae(vm, vcpu)
    saved = vcpu.sregs
    if not saved.cr0 >> 31:
        lacks("does not turn on PAE paging")
    if saved.pdptrs is None:
        lacks("has no KVM_GET_SREGS2")
    assert saved.pdptrs == (0x4001, 0x5001, 0x6001, 0x7001)
    # The guest may have changed them in memory since it loaded CR3.
    vm.memory.write(PDPTES, bytes(32))
    vcpu.sregs = saved
    assert vcpu.sregs.pdptrs == saved.pdptrs
    vcpu.set_sregs(cr3=PDPTES)
    assert vcpu.sregs.pdptrs == (0, 0, 0, 0)

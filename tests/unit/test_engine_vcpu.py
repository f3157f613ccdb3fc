"""A vCPU run on the caller's thread: its registers and its exits."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
from engine_guest import ENTRY, HLT, IN, OUT, SPIN, UD2, guest, lacks, machine

from ostler.engine import (
    CpuidEntry,
    Debug,
    DebugRegs,
    Events,
    GuestDebug,
    Hlt,
    Interrupted,
    IoIn,
    IoOut,
    LapicState,
    MmioRead,
    MmioWrite,
    MpState,
    Regs,
    Segment,
    Shutdown,
    Vcpu,
    VirtualMachine,
    XsaveArea,
)
from ostler.errors import ConfigError, OstlerError, StateError

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")


@pytest.fixture
def vcpu() -> Vcpu:
    return guest(HLT)[1]


def test_regs_written_read_back(vcpu: Vcpu) -> None:
    values = {name: 0x1111_2222_3333_0000 + at for at, name in enumerate(Regs.__slots__)}
    regs = Regs(**values | {"rflags": 0x202})
    vcpu.regs = regs
    assert vcpu.regs == regs


def test_regs_are_a_copy_until_written_back(vcpu: Vcpu) -> None:
    regs = vcpu.regs
    regs.rax = 5
    assert vcpu.regs.rax != 5
    vcpu.regs = regs
    assert vcpu.regs.rax == 5


def test_set_regs_changes_only_what_is_named(vcpu: Vcpu) -> None:
    before = vcpu.regs
    vcpu.set_regs(rax=5, r15=6)
    assert vcpu.regs == replace(before, rax=5, r15=6)


def test_set_regs_unknown_name_is_an_attribute_error(vcpu: Vcpu) -> None:
    with pytest.raises(AttributeError, match="eax"):
        vcpu.set_regs(eax=5)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_register_value_that_does_not_fit_is_named(vcpu: Vcpu, value: int) -> None:
    with pytest.raises(OverflowError, match=r"Regs\.rbx"):
        vcpu.set_regs(rbx=value)


def test_register_set_of_another_kind_is_a_type_error(vcpu: Vcpu) -> None:
    with pytest.raises(TypeError, match="expected Regs, got Segment"):
        vcpu.regs = Segment()  # type: ignore[assignment]  # that is the point


def test_regs_are_shown_in_hexadecimal() -> None:
    assert repr(Regs(rax=0x1234)).startswith("Regs(rax=0x1234, rbx=0x0")
    assert "db=(0x1, 0x2, 0x3, 0x4)" in repr(DebugRegs(db=(1, 2, 3, 4)))


def test_sregs_segment_written_reads_back(vcpu: Vcpu) -> None:
    sregs = vcpu.sregs
    sregs.ds = replace(sregs.ds, base=0x12340, selector=0x1234, limit=0xFFFF)
    sregs.gdt.base, sregs.gdt.limit = 0x5000, 0x37
    sregs.cr3 = 0x7000
    vcpu.sregs = sregs
    assert vcpu.sregs == sregs
    vcpu.set_sregs(cr2=0xDEAD)
    assert vcpu.sregs == replace(sregs, cr2=0xDEAD)


def test_debug_regs_written_read_back(vcpu: Vcpu) -> None:
    debug = DebugRegs(db=(0x1000, 0x2000, 0x3000, 0x4000), dr6=0xFFFF0FF1, dr7=0x401)
    vcpu.debug_regs = debug
    assert vcpu.debug_regs == debug


def test_debug_regs_with_three_addresses_are_refused(vcpu: Vcpu) -> None:
    with pytest.raises(TypeError, match=r"DebugRegs\.db: expected 4 items, got 3"):
        vcpu.debug_regs = DebugRegs(db=(1, 2, 3))  # type: ignore[arg-type]  # that is the point


def test_xsave_registers_written_read_back(vcpu: Vcpu) -> None:
    area = vcpu.xsave
    area.set_xmm(0, bytes(range(16)))
    area.set_ymm(15, bytes(range(32)))
    area.set_st(7, bytes(range(10)))
    vcpu.xsave = area
    area = vcpu.xsave
    assert area.xmm(0) == bytes(range(16))
    assert area.ymm(15) == bytes(range(32))
    assert area.st(7) == bytes(range(10))


def test_xsave_area_refuses_registers_that_do_not_exist() -> None:
    area = XsaveArea(bytes(576))
    assert area.ymm(1) == bytes(32)
    with pytest.raises(IndexError):
        area.xmm(16)
    with pytest.raises(ValueError, match="no AVX"):
        area.set_ymm(0, bytes(32))
    with pytest.raises(ValueError, match="expected 16 bytes, got 3"):
        area.set_xmm(0, b"abc")


def test_xcrs_written_read_back(vcpu: Vcpu) -> None:
    xcrs = vcpu.xcrs
    assert xcrs[0] & 1
    vcpu.xcrs = xcrs
    assert vcpu.xcrs == xcrs


def test_msrs_written_read_back(vcpu: Vcpu) -> None:
    lstar = 0xC000_0082
    vcpu.set_msr(lstar, 0x1234)
    assert vcpu.msr(lstar) == 0x1234
    assert vcpu.msrs()[lstar] == 0x1234
    vcpu.set_msrs({lstar: 0x5678})
    assert vcpu.msr(lstar) == 0x5678


def test_msr_that_does_not_exist_is_a_state_error(vcpu: Vcpu) -> None:
    with pytest.raises(StateError, match="0xbad does not exist"):
        vcpu.msr(0xBAD)
    with pytest.raises(StateError, match="0xbad"):
        vcpu.set_msr(0xBAD, 1)


def test_cpuid_written_reads_back(vcpu: Vcpu) -> None:
    supported = machine().supported_cpuid()
    assert any(entry.function == 0 and entry.eax >= 1 for entry in supported)
    entries = [*supported, CpuidEntry(function=0x4000_0F00, eax=7)]
    vcpu.cpuid = entries
    assert vcpu.cpuid == entries


def test_events_written_read_back(vcpu: Vcpu) -> None:
    events = Events(exception=(14, 2), nmi_pending=True, nmi_masked=True, interrupt_shadow=True)
    vcpu.events = events
    assert vcpu.events == events
    vcpu.events = Events()
    assert vcpu.events == Events()


def test_mp_state_written_reads_back(vcpu: Vcpu) -> None:
    assert vcpu.mp_state is MpState.RUNNABLE
    vcpu.mp_state = MpState.HALTED
    assert vcpu.mp_state is MpState.HALTED


def test_irqchip_and_lapic_written_read_back() -> None:
    vm = machine()
    vm.create_irqchip()
    vcpu = vm.create_vcpu(0)
    state = vm.irqchip_state
    state.pics[0].imr = 0xAB
    vm.irqchip_state = state
    assert vm.irqchip_state.pics[0].imr == 0xAB
    lapic = vcpu.lapic
    assert lapic.register(0x20) == 0
    assert lapic.register(0x30) & 0xFF >= 0x10
    vcpu.lapic = lapic
    assert vcpu.lapic == lapic
    with pytest.raises(TypeError, match="expected 1024 bytes, got 3"):
        vcpu.lapic = LapicState(b"abc")


def test_vcpu_number_taken_or_too_large_is_refused() -> None:
    vm = machine()
    first = vm.create_vcpu(0)
    assert first.id == 0
    with pytest.raises(ConfigError, match="vCPU 0 exists already"):
        vm.create_vcpu(0)
    with pytest.raises(ConfigError, match=f"limit of {vm.max_vcpus}"):
        vm.create_vcpu(vm.max_vcpus)


def test_accelerator_unknown_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(ConfigError, match="this build has: kvm, soft"):
        VirtualMachine("hard")
    assert VirtualMachine("soft").accelerator == "soft"


def test_run_ends_at_hlt_after_it(vcpu: Vcpu) -> None:
    assert vcpu.run() == Hlt()
    assert vcpu.regs.rip == ENTRY + 1


def test_run_exits_at_ports_and_takes_the_answer() -> None:
    _, vcpu = guest(OUT + IN + OUT + HLT)
    exits = []
    while (exit_ := vcpu.run()) != Hlt():
        exits.append(exit_)
        match exit_:
            case IoIn(size=size):
                vcpu.supply_read((0x7E).to_bytes(size, "little"))
            case IoOut(data=data):
                assert exit_.value == data[0]
    assert exits == [IoOut(0x10, b"\0"), IoIn(0x10, 1), IoOut(0x10, b"\x7e")]


def test_run_exits_at_addresses_without_memory_and_takes_the_answer() -> None:
    load, store = bytes.fromhex("a10000"), bytes.fromhex("a30200")  # mov ax, [0]; mov [2], ax
    _, vcpu = guest(load + store + HLT)
    sregs = vcpu.sregs
    sregs.ds = replace(sregs.ds, base=0xD0000)
    vcpu.sregs = sregs
    assert vcpu.run() == MmioRead(gpa=0xD0000, size=2)
    vcpu.supply_read(b"\x34\x12")
    assert vcpu.run() == MmioWrite(gpa=0xD0002, data=b"\x34\x12")
    assert vcpu.run() == Hlt()


def test_run_read_without_an_answer_gives_ones() -> None:
    _, vcpu = guest(IN + HLT)
    assert vcpu.run() == IoIn(0x10, 1)
    assert vcpu.run() == Hlt()
    assert vcpu.regs.rax & 0xFF == 0xFF


def test_supply_read_of_the_wrong_size_is_refused() -> None:
    _, vcpu = guest(IN + HLT)
    vcpu.run()
    with pytest.raises(OstlerError, match="pending read has 1 bytes, the answer 2"):
        vcpu.supply_read(b"ab")


def test_run_ends_at_a_triple_fault() -> None:
    vm, vcpu = guest(UD2)
    vm.memory.write(0, HLT)  # where vector 6 leads, if the IDT's limit of 0 is overlooked
    exit_ = vcpu.run()
    if exit_ == Hlt():
        lacks("emulates kernel mode without the IDT's limit")
    assert exit_ == Shutdown()


def test_single_step_exits_to_the_debugger_after_each_instruction() -> None:
    _, vcpu = guest(bytes.fromhex("9090"))  # nop; nop
    vcpu.set_guest_debug(GuestDebug(single_step=True))
    for steps in (1, 2):
        stepped = vcpu.run()
        assert isinstance(stepped, Debug)
        assert (stepped.rip, stepped.exception) == (ENTRY + steps, 1)


def test_breakpoint_exits_to_the_debugger_before_it() -> None:
    vm, vcpu = guest(bytes.fromhex("90cc"))  # nop; int3
    vm.memory.write(0, HLT)  # where vector 3 leads
    vcpu.set_guest_debug(GuestDebug(software_breakpoints=True))
    stopped = vcpu.run()
    if stopped == Hlt():
        lacks("emulates kernel mode without breakpoints")
    assert isinstance(stopped, Debug)
    assert (stopped.rip, stopped.exception) == (ENTRY + 1, 3)


def test_instructions_are_counted_where_the_accelerator_can(accelerator: str) -> None:
    _, vcpu = guest(bytes.fromhex("9090") + HLT)
    before = vcpu.instructions
    assert vcpu.run() == Hlt()
    if accelerator == "kvm":
        assert before is None
        return
    assert before is not None
    assert (vcpu.instructions or 0) - before == 3


def test_interrupt_is_delivered_through_the_vector_table() -> None:
    vm, vcpu = guest(bytes.fromhex("fb90") + SPIN)  # sti; nop
    vm.memory.write(4 * 0x21, bytes.fromhex("00200000"))
    vm.memory.write(0x2000, HLT)
    sregs = vcpu.sregs
    sregs.idt.limit = 0x3FF
    vcpu.sregs = sregs
    vcpu.set_regs(rsp=0x8000)
    vcpu.interrupt(0x21)
    assert vcpu.run() == Hlt()
    assert vcpu.regs.rip == 0x2001


def test_translate_in_real_mode_is_the_identity(vcpu: Vcpu) -> None:
    assert vcpu.translate(0x1234) == 0x1234


def test_kick_before_run_makes_the_next_run_return_once(vcpu: Vcpu) -> None:
    vcpu.kick()
    vcpu.kick()
    assert vcpu.run() == Interrupted()
    assert vcpu.run() == Hlt()


def test_kick_from_another_thread_interrupts_a_spinning_guest() -> None:
    _, vcpu = guest(SPIN)
    threading.Timer(0.05, vcpu.kick).start()
    assert vcpu.run() == Interrupted()
    assert vcpu.regs.rip == ENTRY


class Bell:
    """A device that tells when the guest has reached it."""

    def __init__(self) -> None:
        self.rang = threading.Event()

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.rang.set()


def spinning() -> tuple[Vcpu, threading.Event]:
    """A vCPU that, once it runs, does so for ever, and what is set when it does."""
    vm, vcpu = guest(OUT + SPIN)
    bell = Bell()
    vm.bus.add("pio", 0x10, 1, bell)
    return vcpu, bell.rang


def test_vcpu_running_refuses_register_access_from_another_thread() -> None:
    vcpu, runs = spinning()
    errors: list[OstlerError] = []

    def look() -> None:
        runs.wait()
        try:
            print(vcpu.regs)
        except OstlerError as error:
            errors.append(error)
        vcpu.kick()

    thread = threading.Thread(target=look)
    thread.start()
    assert vcpu.run() == Interrupted()
    thread.join()
    assert [str(error) for error in errors] == ["vCPU 0 is running; pause it first"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as Python has it: a shell starts its background jobs with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    "interrupt", [partial(signal.raise_signal, signal.SIGINT), _thread.interrupt_main]
)
def test_ctrl_c_during_run_raises_keyboard_interrupt_and_run_can_go_on(
    interrupt: Callable[[], None],
) -> None:
    vcpu, runs = spinning()

    def type_ctrl_c() -> None:
        runs.wait()
        interrupt()

    thread = threading.Thread(target=type_ctrl_c)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        vcpu.run()
    thread.join()
    vcpu.kick()
    assert vcpu.run() == Interrupted()


def test_run_longer_than_a_tick_does_not_return_early() -> None:
    _, vcpu = guest(SPIN)
    threading.Timer(0.2, vcpu.kick).start()
    start = time.monotonic()
    assert vcpu.run() == Interrupted()
    assert time.monotonic() - start > 0.19

"""vCPU threads, interrupts and the clock as Python sees them."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from engine_guest import (
    ENTRY,
    HLT,
    IN,
    OUT,
    RAM_BYTES,
    SPIN,
    UD2,
    Register,
    enter_real_mode,
    guest,
    lacks,
    machine,
)

from ostler.engine import (
    DescriptorTable,
    Exit,
    Hlt,
    InternalError,
    IoIn,
    MpState,
    Shutdown,
    Threads,
    Vcpu,
)
from ostler.errors import OstlerError

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")

PATIENCE_S = 10.0


class Exits:
    """Collects what `on_exit` is told."""

    def __init__(self) -> None:
        self.queue: queue.Queue[tuple[int, Exit]] = queue.Queue()

    def __call__(self, vcpu: int, exit_: Exit) -> None:
        self.queue.put((vcpu, exit_))

    def next(self) -> tuple[int, Exit]:
        return self.queue.get(timeout=PATIENCE_S)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_are_named_after_their_vcpu() -> None:
    vm, vcpu = guest(SPIN)
    threads = vm.start([vcpu], Exits())
    wait_until(lambda: threads.states == ["running"])
    tasks = Path("/proc/self/task").iterdir()
    assert "vcpu0\n" in [(task / "comm").read_text() for task in tasks]
    threads.stop()
    assert threads.states == ["finished"]
    assert not threads.running


def test_registers_are_reachable_while_paused_and_only_then() -> None:
    vm, vcpu = guest(SPIN + HLT)
    exits = Exits()
    threads = vm.start([vcpu], exits, paused=True)
    assert vcpu.regs.rip == ENTRY
    threads.resume()
    wait_until(lambda: threads.states == ["running"])
    with pytest.raises(OstlerError, match="vCPU 0 is running"):
        vcpu.set_regs(rip=0)
    threads.pause()
    assert not threads.running
    assert vcpu.regs.rip == ENTRY
    vcpu.set_regs(rip=ENTRY + 2)
    threads.resume()
    assert exits.next() == (0, Hlt())
    threads.stop()


def test_vcpu_of_a_thread_is_not_run_elsewhere() -> None:
    vm, vcpu = guest(SPIN)
    threads = vm.start([vcpu], Exits(), paused=True)
    with pytest.raises(OstlerError, match="vCPU 0 belongs to a thread"):
        vcpu.run()
    with pytest.raises(OstlerError, match="vCPU 0 has a thread already"):
        vm.start([vcpu], Exits())
    threads.stop()
    vcpu.set_regs(rip=ENTRY + 2)
    vm.memory.write(ENTRY + 2, HLT)
    assert vcpu.run() == Hlt()


def test_exit_nobody_answers_pauses_the_vm_and_can_be_answered() -> None:
    vm, vcpu = guest(IN + HLT)
    exits = Exits()
    threads = vm.start([vcpu], exits)
    assert exits.next() == (0, IoIn(0x10, 1))
    assert not threads.running
    vcpu.supply_read(b"\x2a")
    threads.resume()
    assert exits.next() == (0, Hlt())
    assert vcpu.regs.rax & 0xFF == 0x2A
    threads.stop()


def test_triple_fault_is_reported_and_a_reset_vcpu_runs_again() -> None:
    vm, vcpu = guest(UD2)
    vm.memory.write(0, HLT)  # where vector 6 leads, if the IDT's limit of 0 is overlooked
    exits = Exits()
    threads = vm.start([vcpu], exits)
    first = exits.next()
    if first == (0, Hlt()):
        threads.stop()
        lacks("emulates kernel mode without the IDT's limit")
    assert first == (0, Shutdown())
    vm.memory.write(ENTRY, HLT)
    enter_real_mode(vcpu)
    vcpu.mp_state = MpState.RUNNABLE
    threads.resume()
    assert exits.next() == (0, Hlt())
    threads.stop()


class Broken(Register):
    def write(self, offset: int, size: int, value: int) -> None:
        raise RuntimeError("the device is broken")


def test_exception_of_a_device_pauses_the_vm_and_its_traceback_is_reported() -> None:
    vm, vcpu = guest(OUT + SPIN)
    vm.bus.add("pio", 0x10, 1, Broken(), "broken")
    exits = Exits()
    threads = vm.start([vcpu], exits)
    _, exit_ = exits.next()
    assert isinstance(exit_, InternalError)
    assert exit_.text.startswith("broken: write at offset 0x0\nTraceback (most recent call last):")
    assert exit_.text.endswith("RuntimeError: the device is broken\n")
    threads.stop()


@pytest.mark.parametrize("verb", ["pause", "stop"])
def test_device_may_pause_or_stop_its_own_vm(verb: str) -> None:
    vm, vcpu = guest(OUT + SPIN)
    started = threading.Event()
    threads: list[Threads] = []

    class Switch(Register):
        def write(self, offset: int, size: int, value: int) -> None:
            started.wait(PATIENCE_S)
            getattr(threads[0], verb)()
            super().write(offset, size, value)

    device = Switch()
    vm.bus.add("pio", 0x10, 1, device)
    threads.append(vm.start([vcpu], Exits()))
    started.set()
    state = {"pause": "paused", "stop": "finished"}[verb]
    wait_until(lambda: threads[0].states == [state] and device.accesses != [])
    assert vcpu.regs.rip == ENTRY + 2
    threads[0].stop()


def test_exit_callback_may_stop_the_threads() -> None:
    vm, vcpu = guest(HLT)
    threads: list[Threads] = []
    seen = queue.Queue[Exit]()

    def on_exit(_id: int, exit_: Exit) -> None:
        threads[0].stop()
        seen.put(exit_)

    threads.append(vm.start([vcpu], on_exit, paused=True))
    threads[0].resume()
    assert seen.get(timeout=PATIENCE_S) == Hlt()
    threads[0].stop()
    assert threads[0].states == ["finished"]


def test_many_vcpus_pause_resume_and_stop() -> None:
    vm = machine()
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    vm.memory.write(ENTRY, SPIN)
    vcpus: list[Vcpu] = [vm.create_vcpu(number) for number in range(16)]
    for vcpu in vcpus:
        enter_real_mode(vcpu)
    threads = vm.start(vcpus, Exits())
    for _ in range(20):
        threads.pause()
        assert threads.states == ["paused"] * 16
        threads.resume()
    threads.stop()
    assert [vcpu.regs.rip for vcpu in vcpus] == [ENTRY] * 16


def test_slots_change_while_other_vcpus_run() -> None:
    vm = machine()
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    vm.memory.write(ENTRY, bytes.fromhex("fe0600e0") + bytes.fromhex("ebfa"))  # inc [0xe000]; jmp
    vcpus = [vm.create_vcpu(number) for number in range(2)]
    for vcpu in vcpus:
        enter_real_mode(vcpu)
    threads = vm.start(vcpus, Exits())
    for _ in range(10):
        vm.memory.add_slot(1, gpa=0x10_0000, size=0x1000)
        vm.memory.set_dirty_log(0, True)
        wait_until(lambda: bool(vm.memory.dirty_log(0)[0xE // 8] & 1 << 0xE % 8))
        vm.memory.set_dirty_log(0, False)
        vm.memory.remove_slot(1)
    threads.stop()


def test_interrupt_line_wakes_a_halted_vcpu() -> None:
    vm = machine()
    vm.create_irqchip()
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    vm.bus.add("pio", 0x10, 1, device := Register())
    setup_pic = "b011e620 b020e621 b004e621 b001e621 b0efe621"  # vectors 0x20.., all but 4 masked
    vm.memory.write(ENTRY, bytes.fromhex(setup_pic) + OUT + bytes.fromhex("fbf4"))  # sti; hlt
    vm.memory.write(4 * 0x24, bytes.fromhex("00200000"))
    vm.memory.write(0x2000, bytes.fromhex("b077") + OUT + SPIN)
    vcpu = vm.create_vcpu(0)
    enter_real_mode(vcpu)
    vcpu.set_sregs(idt=DescriptorTable(limit=0x3FF))
    vcpu.set_regs(rsp=0x8000)
    threads = vm.start([vcpu], Exits())
    wait_until(lambda: len(device.accesses) == 1)
    vm.irq_line(4).set_level(True)
    wait_until(lambda: device.value == 0x77)
    threads.stop()


def test_eventfd_is_rung_while_another_thread_keeps_the_interpreter() -> None:
    vm, vcpu = guest(OUT + SPIN)
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    vm.bus.add_eventfd("pio", 0x10, 1, fd)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        threads = vm.start([vcpu], Exits())
        deadline = time.monotonic() + PATIENCE_S
        rung = 0
        while rung == 0 and time.monotonic() < deadline:
            with suppress(BlockingIOError):
                rung = os.eventfd_read(fd)
        assert rung == 1
    finally:
        sys.setswitchinterval(interval)
    threads.stop()
    os.close(fd)


def test_clock_stands_still_while_paused() -> None:
    vm, vcpu = guest(SPIN)
    threads = vm.start([vcpu], Exits())
    first = vm.clock.now_ns()
    wait_until(lambda: vm.clock.now_ns() > first)
    threads.pause()
    stopped = vm.clock.now_ns()
    time.sleep(0.02)
    assert vm.clock.now_ns() == stopped
    vm.clock.set_ns(stopped + 1_000_000_000)
    threads.resume()
    wait_until(lambda: vm.clock.now_ns() > stopped + 1_000_000_000)
    threads.stop()


def test_msi_route_masked_keeps_one_interrupt_pending() -> None:
    vm = machine()
    vm.create_irqchip()
    vm.create_vcpu(0)
    route = vm.msi_route()
    seen = [(route.masked, route.pending)]
    route.update(address=0xFEE0_0000, data=0x41)
    route.signal()
    seen.append((route.masked, route.pending))
    route.masked = False
    seen.append((route.masked, route.pending))
    assert seen == [(True, False), (True, True), (False, False)]
    assert (route.address, route.data) == (0xFEE0_0000, 0x41)


def test_msi_route_pending_bit_can_be_restored() -> None:
    route = machine().msi_route()
    route.pending = True
    assert route.pending


def test_threads_still_running_do_not_keep_the_interpreter_from_ending() -> None:
    script = (
        "from engine_guest import *\n"
        "vm, vcpu = guest(IN + bytes.fromhex('ebfc'))\n"
        "vm.bus.add('pio', 0x10, 1, Register())\n"
        "threads = vm.start([vcpu], print)\n"
        "while not vcpu.counters['io_in']: pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")

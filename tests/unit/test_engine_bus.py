"""The bus, with devices written in Python and eventfds on it."""

from __future__ import annotations

import os

import pytest
from engine_guest import HLT, IN, OUT, SPIN, Register, guest, machine

from ostler.engine import Bus, Hlt, IoIn, IoOut, Space
from ostler.errors import ConfigError

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")


@pytest.fixture
def bus() -> Bus:
    return machine().bus


@pytest.mark.parametrize("space", ["pio", "mmio"])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_device_is_asked_for_the_offset_into_its_range(bus: Bus, space: Space, size: int) -> None:
    device = Register(0x5A)
    bus.add(space, 0x1000, 16, device)
    assert bus.read(space, 0x1008, size) == 0x5A
    bus.write(space, 0x1008, size, 0x7F)
    assert device.value == 0x7F
    assert device.accesses == [("read", 8, size), ("write", 8, size)]


def test_access_nobody_owns_reads_ones(bus: Bus) -> None:
    assert bus.open_bus
    assert bus.read("pio", 0x80, 2) == 0xFFFF
    bus.write("pio", 0x80, 2, 0)


def test_overlap_is_refused_with_a_message_that_names_both(bus: Bus) -> None:
    bus.add("pio", 0x60, 5, Register(), "keyboard")
    with pytest.raises(ConfigError, match=r"mouse: port range 0x64\.\.=0x64 overlaps keyboard's"):
        bus.add("pio", 0x64, 1, Register(), "mouse")
    bus.add("mmio", 0x64, 1, Register(), "mouse")
    assert bus.ranges("pio") == [(0x60, 5, "keyboard")]


def test_range_is_named_after_its_device_unless_told(bus: Bus) -> None:
    bus.add("pio", 0x60, 1, Register())
    assert bus.ranges("pio") == [(0x60, 1, "Register")]


def test_range_removed_is_nobodys_and_removing_it_again_is_refused(bus: Bus) -> None:
    bus.add("pio", 0x60, 1, Register())
    bus.remove("pio", 0x60)
    assert bus.read("pio", 0x60, 1) == 0xFF
    with pytest.raises(ConfigError, match="no port range starts at 0x60"):
        bus.remove("pio", 0x60)


def test_close_lets_go_of_every_device() -> None:
    vm = machine()
    vm.bus.add("pio", 0x60, 1, Register())
    vm.bus.add("mmio", 0x60, 1, Register())
    vm.close()
    assert vm.bus.ranges("pio") == vm.bus.ranges("mmio") == []


def test_space_unknown_is_a_value_error(bus: Bus) -> None:
    with pytest.raises(ValueError, match="no space"):
        bus.add("msr", 0, 1, Register())  # type: ignore[arg-type]  # that is the point


def test_object_that_is_no_device_is_refused_at_once(bus: Bus) -> None:
    with pytest.raises(AttributeError, match="read"):
        bus.add("pio", 0, 1, object())  # type: ignore[arg-type]  # that is the point


def test_eventfd_counts_writes_and_reads_zeros(bus: Bus) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    bus.add_eventfd("mmio", 0x1000, 4, fd)
    bus.write("mmio", 0x1000, 4, 1)
    bus.write("mmio", 0x1002, 2, 1)
    assert os.eventfd_read(fd) == 2
    assert bus.read("mmio", 0x1000, 4) == 0
    os.close(fd)
    bus.write("mmio", 0x1000, 4, 1)


def test_guest_reaches_a_python_device_without_an_exit() -> None:
    vm, vcpu = guest(IN + OUT + HLT)
    device = Register(0x42)
    vm.bus.add("pio", 0x10, 1, device)
    assert vcpu.run() == Hlt()
    assert vcpu.regs.rax & 0xFF == 0x42
    assert device.accesses == [("read", 0, 1), ("write", 0, 1)]
    assert (vcpu.counters["io_in"], vcpu.counters["io_out"], vcpu.counters["hlt"]) == (1, 1, 1)


def test_guest_rings_an_eventfd_without_an_exit() -> None:
    vm, vcpu = guest(OUT + OUT + HLT)
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    vm.bus.add_eventfd("pio", 0x10, 1, fd)
    assert vcpu.run() == Hlt()
    assert os.eventfd_read(fd) == 2
    os.close(fd)


def test_eventfd_removed_is_rung_no_more_and_another_may_take_its_place() -> None:
    vm, vcpu = guest(OUT + HLT + OUT + HLT + OUT + HLT)
    first, second = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    vm.bus.add_eventfd("pio", 0x10, 1, first)
    assert vcpu.run() == Hlt()
    assert os.eventfd_read(first) == 1
    vm.bus.remove("pio", 0x10)
    assert vcpu.run() == IoOut(0x10, b"\0")
    assert vcpu.run() == Hlt()
    vm.bus.add_eventfd("pio", 0x10, 1, second)
    assert vcpu.run() == Hlt()
    assert os.eventfd_read(second) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(first)
    os.close(first)
    os.close(second)


def test_access_nobody_owns_is_an_exit_where_the_bus_is_not_open() -> None:
    _, vcpu = guest(OUT + IN + HLT)
    vcpu.set_regs(rax=0x41)
    assert vcpu.run() == IoOut(port=0x10, data=b"A")
    assert vcpu.run() == IoIn(port=0x10, size=1)
    vcpu.supply_read(b"\x99")
    assert vcpu.run() == Hlt()
    assert vcpu.regs.rax & 0xFF == 0x99


def test_access_nobody_owns_is_no_exit_on_an_open_bus() -> None:
    _, vcpu = guest(OUT + IN + HLT, open_bus=True)
    assert vcpu.run() == Hlt()
    assert vcpu.regs.rax & 0xFF == 0xFF


class Faulty:
    def read(self, offset: int, size: int) -> int:
        return 0x100

    def write(self, offset: int, size: int, value: int) -> None:
        raise RuntimeError("the device is broken")


def test_exception_of_a_device_is_raised_by_run_which_can_go_on() -> None:
    vm, vcpu = guest(OUT + HLT)
    vm.bus.add("pio", 0x10, 1, Faulty())
    with pytest.raises(RuntimeError, match="the device is broken"):
        vcpu.run()
    assert vcpu.run() == Hlt()


def test_answer_too_large_for_the_access_is_a_defect_of_the_device(bus: Bus) -> None:
    bus.add("pio", 0x10, 2, Faulty())
    with pytest.raises(ValueError, match="0x100 is more than 1 bytes hold"):
        bus.read("pio", 0x10, 1)
    assert bus.read("pio", 0x10, 2) == 0x100


def test_device_may_change_the_bus_while_it_is_asked() -> None:
    vm, vcpu = guest(OUT + OUT + SPIN)

    class Mover(Register):
        def write(self, offset: int, size: int, value: int) -> None:
            super().write(offset, size, value)
            vm.bus.remove("pio", 0x10)
            vm.memory.add_slot(1, gpa=0x10_0000, size=0x1000)

    device = Mover()
    vm.bus.add("pio", 0x10, 1, device)
    assert vcpu.run() == IoOut(port=0x10, data=b"\0")
    assert len(device.accesses) == 1

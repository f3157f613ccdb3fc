"""Writes that wait until the guest next needs somebody: all arrive, in order, and before that."""

from __future__ import annotations

import queue

import pytest
from engine_guest import HLT, IN, OUT, Mailbox, Register, guest

from ostler.engine import Exit, Hlt

pytest_plugins = ["accelerators"]
pytestmark = pytest.mark.usefixtures("accelerator")

PORT, GPA = 0x12, 0x10_0000
# More than the ring of a page holds.
MANY = 600


class Log:
    """Devices that share one log of who was asked, and for what."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, int, int]] = []

    def device(self, name: str) -> Register:
        log = self.entries

        class Logged(Register):
            def read(self, offset: int, size: int) -> int:
                log.append((f"{name} read", offset, 0))
                return 0

            def write(self, offset: int, size: int, value: int) -> None:
                log.append((name, offset, value))

        return Logged()


def test_writes_come_in_order_and_before_the_next_access() -> None:
    # mov cx, MANY; next: mov ax, cx; out 0x12, ax; loop next; in al, 0x10; hlt
    code = b"\xb9" + MANY.to_bytes(2, "little") + bytes.fromhex("89c8 e712 e2fa") + IN + HLT
    vm, vcpu = guest(code)
    log = Log()
    vm.bus.add("pio", PORT, 2, log.device("late"))
    vm.bus.add("pio", 0x10, 1, log.device("other"))
    vm.coalesce("pio", PORT, 2)
    assert vcpu.run() == Hlt()
    late = [("late", 0, value) for value in range(MANY, 0, -1)]
    assert log.entries == [*late, ("other read", 0, 0)]


def test_stores_and_writes_to_ports_keep_their_order_among_each_other() -> None:
    # mov al, 1; out 0x12, al; mov [0], al (at GPA); mov al, 2; out 0x12, al; mov [1], al; hlt
    code = bytes.fromhex("b001 e612 a20000 b002 e612 a20100") + HLT
    vm, vcpu = guest(code)
    sregs = vcpu.sregs
    sregs.ds.base = GPA
    vcpu.sregs = sregs
    log = Log()
    vm.bus.add("pio", PORT, 1, log.device("port"))
    vm.bus.add("mmio", GPA, 16, log.device("memory"))
    vm.coalesce("pio", PORT, 1)
    vm.coalesce("mmio", GPA, 16)
    assert vcpu.run() == Hlt()
    assert log.entries == [("port", 0, 1), ("memory", 0, 1), ("port", 0, 2), ("memory", 1, 2)]


def test_access_beside_the_zone_is_none_of_it() -> None:
    # out 0x12, ax: two bytes, of which one is in the zone; out 0x13, al
    vm, vcpu = guest(bytes.fromhex("b83412 e712 e613") + HLT)
    log = Log()
    vm.bus.add("pio", PORT, 2, log.device("port"))
    vm.coalesce("pio", PORT, 1)
    assert vcpu.run() == Hlt()
    assert log.entries == [("port", 0, 0x1234), ("port", 1, 0x34)]


def test_write_under_way_has_arrived_when_the_guest_is_paused() -> None:
    # mov al, 1; out 0x10, al; mov al, 5; out 0x12, al; mov [0x2000], al; jmp $
    vm, vcpu = guest(bytes.fromhex("b001") + OUT + bytes.fromhex("b005 e612 a20020 ebfe"))
    vm.bus.add("pio", 0x10, 1, ready := Mailbox())
    vm.bus.add("pio", PORT, 1, late := Mailbox())
    vm.coalesce("pio", PORT, 1)

    def ignore(_vcpu: int, _exit: Exit) -> None:
        """Nothing is expected to leave the guest."""

    threads = vm.start([vcpu], ignore)
    assert ready.get() == 1
    while vm.memory.read(0x2000, 1) != b"\x05":
        pass
    threads.pause()
    try:
        assert late.queue.get_nowait() == 5
    except queue.Empty:
        pytest.fail("the write has not arrived")
    finally:
        threads.stop()

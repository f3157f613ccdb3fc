import contextlib
import os
import pty
import termios
from collections.abc import Iterator
from typing import cast

import pytest

from ostler.control.console import SerialConsole
from ostler.control.stdio import InputCopy, OutputCopy, RawTerminal
from ostler.control.vm import VM


class FakeVm:
    """The part of a VM that a terminal uses."""

    def __init__(self) -> None:
        self.serial = SerialConsole()
        self.asked: list[str] = []

    def ask_to_end(self, grace: float = 0) -> None:
        self.asked.append("end")

    def power_button(self) -> None:
        self.asked.append("power button")

    def reset(self) -> None:
        self.asked.append("reset")

    def send_break(self) -> None:
        self.asked.append("break")


@pytest.fixture
def vm() -> FakeVm:
    return FakeVm()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def type_in(vm: FakeVm, pipe: tuple[int, int], text: bytes, *, commands: bool) -> bytes:
    """What the guest gets when `text` comes in, up to its end."""
    keys = InputCopy(cast(VM, vm), vm.serial, pipe[0], commands=commands)
    os.write(pipe[1], text)
    os.close(pipe[1])
    keys.start()
    keys._thread.join()
    keys.finish()
    return vm.serial.receive(1 << 16)


def test_input_of_a_pipe_is_typed_as_it_is(vm: FakeVm, pipe: tuple[int, int]) -> None:
    assert type_in(vm, pipe, b"ls\x01x\n", commands=False) == b"ls\x01x\n"
    assert vm.asked == []


def test_input_commands_are_carried_out(vm: FakeVm, pipe: tuple[int, int]) -> None:
    assert type_in(vm, pipe, b"a\x01\x01b\x01p\x01r\x01b\x01xc", commands=True) == b"a\x01bc"
    assert vm.asked == ["power button", "reset", "break", "end"]


def test_input_after_the_guests_end_is_dropped(vm: FakeVm, pipe: tuple[int, int]) -> None:
    vm.serial.end("the guest has ended")
    assert type_in(vm, pipe, b"ls\n", commands=False) == b""


def test_input_finish_does_not_wait_for_more(vm: FakeVm, pipe: tuple[int, int]) -> None:
    keys = InputCopy(cast(VM, vm), vm.serial, pipe[0], commands=False)
    keys.start()
    keys.finish()
    os.close(pipe[1])


def test_output_is_copied_to_its_end(vm: FakeVm, pipe: tuple[int, int]) -> None:
    seen: list[bytes] = []
    output = OutputCopy(cast(VM, vm), vm.serial, pipe[1], seen.append)
    vm.serial.transmit(b"before ")
    output.start()
    vm.serial.transmit(b"after")
    vm.serial.end("over")
    output.finish()
    os.close(pipe[1])
    assert os.read(pipe[0], 100) == b"".join(seen) == b"before after"


def test_output_nobody_reads_ends_the_machine(vm: FakeVm) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    output = OutputCopy(cast(VM, vm), vm.serial, writer, lambda data: None)
    vm.serial.transmit(b"x")
    output.start()
    output.finish()
    os.close(writer)
    assert vm.asked == ["end"]


def test_raw_terminal_is_restored_after_an_exception() -> None:
    main, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    with contextlib.suppress(KeyError), RawTerminal(terminal) as raw:
        assert raw.active
        assert not termios.tcgetattr(terminal)[3] & termios.ICANON
        raise KeyError
    assert termios.tcgetattr(terminal) == before
    os.close(main)
    os.close(terminal)


def test_raw_terminal_on_a_pipe_does_nothing(pipe: tuple[int, int]) -> None:
    with RawTerminal(pipe[0]) as raw:
        assert not raw.active
    os.close(pipe[1])

"""The user's terminal as the guest's console, and as it was afterwards."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest
from stock import ACCELERATOR, BOOT_S, END_S, OSTLER, READY

from guests.fetch import Kernel
from guests.images import initrd

pytestmark = pytest.mark.guest


class Terminal:
    """`ostler run` on a pseudo-terminal, driven from its other side."""

    def __init__(self, kernel: Kernel, *options: str, size: tuple[int, int] = (24, 80)) -> None:
        self.keyboard, self.tty = pty.openpty()
        termios.tcsetwinsize(self.tty, size)
        self.before = self.settings()
        self.seen = b""
        self.process = subprocess.Popen(
            [
                str(OSTLER), "run", "--kernel", str(kernel.image), "--initrd", str(initrd(kernel)),
                "--append", "console=ttyS0 quiet", "--memory", "256M", "--accel", ACCELERATOR,
                *options,
            ],
            stdin=self.tty,
            stdout=self.tty,
            stderr=self.tty,
        )  # fmt: skip

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.tty)

    def expect(self, text: str, timeout: float = END_S) -> None:
        """Read the screen until `text` comes."""
        deadline = time.monotonic() + timeout
        while text.encode() not in self.seen:
            left = max(0, deadline - time.monotonic())
            ready, _, _ = select.select([self.keyboard], [], [], left)
            assert ready, f"{text!r} did not come: {self.seen[-300:]!r}"
            self.seen += os.read(self.keyboard, 4096)
        self.seen = self.seen.partition(text.encode())[2]

    def press(self, keys: str) -> None:
        os.write(self.keyboard, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.keyboard)
        os.close(self.tty)


@pytest.fixture
def terminal(cloud: Kernel) -> Iterator[Terminal]:
    started = Terminal(cloud)
    try:
        started.expect(READY, BOOT_S)
        yield started
    finally:
        started.close()


def test_keys_reach_the_guest_and_interrupt_a_program_there(terminal: Terminal) -> None:
    assert terminal.settings() != terminal.before
    terminal.press("sleep 1000\r")
    terminal.expect("sleep 1000")
    time.sleep(1)
    terminal.press("\x03")
    terminal.expect("/ #")  # an interrupt drops what was typed ahead
    terminal.press("echo $((6*7)) is the answer\r")
    terminal.expect("42 is the answer")


def test_help_and_quit_leave_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.press("\x01h")
    terminal.expect("Ctrl-A x")
    terminal.press("\x01x")
    assert terminal.process.wait(END_S) == 0
    assert terminal.settings() == terminal.before


def test_termination_by_a_signal_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.process.send_signal(signal.SIGTERM)
    terminal.process.send_signal(signal.SIGTERM)
    terminal.process.wait(END_S)
    assert terminal.settings() == terminal.before


def test_power_off_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.press("poweroff\r")
    assert terminal.process.wait(END_S) == 0
    assert terminal.settings() == terminal.before


def test_console_follows_the_size_of_the_terminal(cloud: Kernel) -> None:
    started = Terminal(cloud, "--device", "virtio-console", "--net", "none", size=(50, 132))
    try:
        started.expect(READY, BOOT_S)
        for rows, columns in ((50, 132), (30, 100)):
            termios.tcsetwinsize(started.tty, (rows, columns))
            # As the kernel does where it is the controlling terminal.
            started.process.send_signal(signal.SIGWINCH)
            wanted = f"'{rows} {columns}'"
            started.press(
                f'until [ "$(stty size </dev/hvc0)" = {wanted} ]; do sleep 0.1; done;'
                " echo it has $((6*7)) columns\r"
            )
            started.expect("it has 42 columns")
    finally:
        started.close()

"""The guest's serial port on this process's standard input and output.

Where standard input is a terminal it is put into raw mode, and Ctrl-A begins a command. The
terminal gets its old settings back when the `with` block ends, however it ends.
"""

from __future__ import annotations

import os
import select
import termios
import threading
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ostler.control.console import SerialConsole
from ostler.control.threads import NamedThread
from ostler.control.vm import VM
from ostler.errors import GuestError

ESCAPE = 0x01  # Ctrl-A
READ_BYTES = 4096
# The guest prints byte by byte; this is how long output may gather before it is shown.
GATHER_S = 0.004

HELP = """
Ctrl-A x  quit: end the machine at once
Ctrl-A p  press the power button
Ctrl-A r  reset the machine
Ctrl-A b  send a break (Linux: magic SysRq)
Ctrl-A h  this help
Ctrl-A Ctrl-A  send Ctrl-A
"""


class RawTerminal:
    """Raw mode on the terminal `fd` within a `with` block; nothing where it is none."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if self._fd is not None and os.isatty(self._fd):
            self._before = termios.tcgetattr(self._fd)
            tty.setraw(self._fd, termios.TCSANOW)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._fd is not None and self._before is not None:
            # Not TCSAFLUSH: what was typed ahead belongs to the shell that comes next.
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    @property
    def active(self) -> bool:
        """Whether there is a terminal, now in raw mode."""
        return self._before is not None


class OutputCopy:
    """Copies what the guest prints on `console` to `fd`, on a thread, until it has ended.

    Where `fd` takes no more (nobody reads it, the file system is full), `failure` says why, and the
    machine is ended: a guest that nobody sees is no use. `saw` is called with what was copied.
    """

    def __init__(
        self, vm: VM, console: SerialConsole, fd: int, saw: Callable[[bytes], object]
    ) -> None:
        self._vm, self._console, self._fd, self._saw = vm, console, fd, saw
        self.failure: OSError | None = None
        self._pause = threading.Event()
        self._thread = NamedThread(target=self._run, name="stdout", daemon=True)

    def start(self) -> None:
        """Begin, from the guest's first byte on."""
        self._console.copied(0)
        self._thread.start()

    def finish(self) -> None:
        """Return when all is copied; the guest has to have ended, if it began."""
        self._pause.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        console, position = self._console, 0
        try:
            while True:
                data, position = console.read_since(position)
                if not data:
                    return
                _write_all(self._fd, data)
                console.copied(position)
                self._saw(data)
                self._pause.wait(GATHER_S)
        except OSError as error:
            self.failure = error
            self._vm.ask_to_end()
        finally:
            console.copied(None)


class InputCopy:
    """Types what comes from `fd` into `console`, on a thread, until its end or the guest's.

    With `commands`, Ctrl-A begins a command.
    """

    def __init__(self, vm: VM, console: SerialConsole, fd: int, *, commands: bool) -> None:
        self._vm, self._console, self._fd = vm, console, fd
        self._commands, self._escaped = commands, False
        self._wake_read, self._wake_write = os.pipe()
        self._thread = NamedThread(target=self._run, name="stdin", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """End it, whether or not there is more to read; the guest has to have ended."""
        os.close(self._wake_write)
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake_read)

    def _run(self) -> None:
        while self._wait_for_input():
            try:
                data = os.read(self._fd, READ_BYTES)
            except OSError:
                return  # the terminal is gone; the guest goes on without input
            if not data:
                return
            try:
                self._take(data)
            except GuestError:
                return  # it has ended, which whoever runs it says

    def _wait_for_input(self) -> bool:
        self._console.wait_for_room()
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        return self._wake_read not in ready

    def _take(self, data: bytes) -> None:
        if not self._commands:
            self._console.write(data)
            return
        typed = bytearray()
        for byte in data:
            if self._escaped:
                self._escaped = False
                typed += self._command(byte)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                typed.append(byte)
        if typed:
            self._console.write(bytes(typed))

    def _command(self, byte: int) -> bytes:
        """Carry out a command; the bytes to type into the guest instead, if any."""
        match chr(byte):
            case "x":
                self._vm.ask_to_end()
            case "p":
                self._vm.power_button()
            case "r":
                self._vm.reset()
            case "b":
                self._vm.send_break()
            case "h" | "?":
                _write_all(2, HELP.replace("\n", "\r\n").encode())
            case "\x01" | "a":
                return bytes((ESCAPE,))
        return b""


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]

"""Connects a console object to the two file descriptors that a virtio console has."""

from __future__ import annotations

import os
import threading

from ostler.control.console import SerialConsole
from ostler.control.threads import NamedThread

READ_BYTES = 4096


class ConsolePipes:
    """Two pipes and a thread for each; `fds` are the guest's ends, for input and for output.

    `close` comes after the device has let go of its ends. Until `set_open` says that the guest
    listens, what is for it waits.
    """

    def __init__(self, console: SerialConsole, name: str = "hvc", *, is_open: bool = True) -> None:
        self._console = console
        self._input_read, self._input_write = os.pipe()
        self._output_read, self._output_write = os.pipe()
        # A guest that takes no input must not hold the thread, so writing may find the pipe full.
        os.set_blocking(self._input_write, False)
        self.fds = (self._input_read, self._output_write)
        self._closing = threading.Event()
        self._open = threading.Event()
        self.set_open(is_open)
        self._threads = [
            NamedThread(target=self._copy_input, name=f"{name}-in", daemon=True),
            NamedThread(target=self._copy_output, name=f"{name}-out", daemon=True),
        ]

    def start(self) -> None:
        """Begin to copy."""
        self._console.connect(lambda: None)
        for thread in self._threads:
            thread.start()

    def set_open(self, is_open: bool) -> None:
        """Whether the guest listens: what it gets before that, it throws away."""
        if is_open:
            self._open.set()
        elif not self._closing.is_set():
            self._open.clear()

    def close(self) -> None:
        """End the threads, with all output copied, and close the pipes."""
        self._console.disconnect()
        self._closing.set()
        self._open.set()
        os.close(self._output_write)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for fd in (self._input_read, self._input_write, self._output_read):
            os.close(fd)

    def _copy_output(self) -> None:
        while data := os.read(self._output_read, READ_BYTES):
            self._console.transmit(data)

    def _copy_input(self) -> None:
        while self._console.wait_for_input():
            self._open.wait()
            if self._closing.is_set():
                return
            self._write(self._console.receive(READ_BYTES))

    def _write(self, data: bytes) -> None:
        while data and not self._closing.is_set():
            try:
                data = data[os.write(self._input_write, data) :]
            except BlockingIOError:
                self._closing.wait(0.01)

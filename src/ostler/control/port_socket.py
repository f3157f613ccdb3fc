"""A unix socket as the host's end of a console port: whoever connects is there, one at a time."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable

READ_BYTES = 4096


def nobody_listens(connected: bool) -> None:
    """Before a device wants to know."""


class PortSocket:
    """Copies between the client of `listener` and the two pipes whose other ends are `fds`.

    Without a client, what the guest prints is dropped, as by a plug that nobody has put in.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.on_client: Callable[[bool], object] = nobody_listens
        self._listener = listener
        self._input_read, self._input_write = os.pipe()
        self._output_read, self._output_write = os.pipe()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for fd in (self._input_write, self._output_read):
            os.set_blocking(fd, False)
        self.fds = (self._input_read, self._output_write)
        self._client: socket.socket | None = None
        self._reads = True  # until the client says that it sends no more
        self._to_guest, self._to_client = b"", b""
        self._open = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="port", daemon=True)

    def start(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def set_open(self, is_open: bool) -> None:
        """Whether the guest has the port open: what it gets before that, it throws away."""
        self._open = is_open
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread and hang up."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        if self._client is not None:
            self._client.close()
        pipes = (self._input_read, self._input_write, self._output_read, self._output_write)
        for fd in (*pipes, self._wake):
            os.close(fd)

    def _run(self) -> None:
        while not self._closing:
            ready = self._wait()
            if self._wake in ready:
                os.eventfd_read(self._wake)
            client = self._client
            if client is None:
                if self._listener.fileno() in ready:
                    self._accept()
                if self._output_read in ready:
                    os.read(self._output_read, READ_BYTES)
                continue
            try:
                self._serve(client, ready)
            except ConnectionError:
                self._hang_up()

    def _wait(self) -> dict[int, int]:
        """Wait for what there is a use for: descriptors that are ready, and their events."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if not self._to_client:
            poll.register(self._output_read, select.POLLIN)
        if self._client is None:
            poll.register(self._listener, select.POLLIN)
            return dict(poll.poll())
        wanted = select.POLLOUT if self._to_client else 0
        if self._to_guest:
            poll.register(self._input_write, select.POLLOUT)
        elif self._open and self._reads:
            wanted |= select.POLLIN
        # A hang-up is always told: what the client said before it goes to the guest first.
        if wanted or not self._to_guest:
            poll.register(self._client, wanted)
        return dict(poll.poll())

    def _accept(self) -> None:
        try:
            self._client, _ = self._listener.accept()
        except OSError:
            return  # who called has gone already
        self._client.setblocking(False)
        self._reads = True
        self.on_client(True)

    def _serve(self, client: socket.socket, ready: dict[int, int]) -> None:
        events = ready.get(client.fileno(), 0)
        if self._output_read in ready:
            self._to_client = os.read(self._output_read, READ_BYTES)
        if events & select.POLLIN:
            self._to_guest = client.recv(READ_BYTES)
            self._reads = bool(self._to_guest)
        elif events & (select.POLLHUP | select.POLLERR):
            raise ConnectionAbortedError("the client has left")
        if self._to_client:
            self._to_client = self._to_client[_sent(client.send, self._to_client) :]
        if self._to_guest:
            written = _sent(lambda data: os.write(self._input_write, data), self._to_guest)
            self._to_guest = self._to_guest[written:]

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        self._to_client = self._to_guest = b""
        self.on_client(False)


def _sent(send: Callable[[bytes], int], data: bytes) -> int:
    try:
        return send(data)
    except BlockingIOError:
        return 0

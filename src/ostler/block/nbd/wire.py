"""A connection's bytes: buffered reads of exact lengths, and time limits that the kernel keeps.

`SO_RCVTIMEO` and `SO_SNDTIMEO` cost nothing while data flows, where Python's own socket time-outs
would poll before every call.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import time

from ostler.block.nbd.protocol import PeerGone

BUFFER_BYTES = 64 << 10
QUEUE_BYTES = 128 << 10
"""Answers that are sent together, once the requests that have come are done."""
_TIMEVAL = struct.Struct("@ll")
_TIMED_OUT = (BlockingIOError, TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire:
    """A connected stream socket. Not for two threads that read, nor two that write."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        connection.settimeout(None)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket: socket.socket = connection
        self.encrypted = False
        self.deadline: float | None = None
        """When a handshake has to be over, on the monotonic clock."""
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._queue = memoryview(bytearray(QUEUE_BYTES))
        self._queued = 0
        self.limit(timeout_s)

    def limit(self, timeout_s: float) -> None:
        """From now on, a peer that is silent for `timeout_s` seconds is given up."""
        self.timeout_s = timeout_s
        value = _TIMEVAL.pack(int(timeout_s), int(timeout_s % 1 * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self.socket.setsockopt(socket.SOL_SOCKET, option, value)

    def encrypt(self, context: ssl.SSLContext, *, server: bool, hostname: str | None) -> None:
        """Go on in TLS. `PeerGone` when the peers do not agree on it."""
        if self._start != self._end:
            # What came before the handshake was sent in clear: an attacker could have put it there.
            raise PeerGone("bytes in clear follow the request for TLS")
        try:
            self.socket = context.wrap_socket(
                self.socket, server_side=server, server_hostname=hostname
            )
        except (OSError, ValueError) as error:
            raise PeerGone(f"TLS failed: {_reason(error)}") from None
        self.encrypted = True

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes; for what is small, or bounded by the caller."""
        if self._end - self._start >= length:
            start = self._start
            self._start += length
            return bytes(self._view[start : start + length])
        content = bytearray(length)
        self.read_into(memoryview(content))
        return bytes(content)

    def read_into(self, target: memoryview) -> None:
        """Fill `target`."""
        there = min(len(target), self._end - self._start)
        target[:there] = self._view[self._start : self._start + there]
        self._start += there
        target = target[there:]
        while len(target) >= BUFFER_BYTES:
            target = target[self._receive(target) :]
        while target:
            self._fill()
            there = min(len(target), self._end)
            target[:there] = self._view[:there]
            self._start, target = there, target[there:]

    def wait(self, length: int) -> bool:
        """Whether `length` bytes come; False when the peer leaves between messages.

        A peer may be idle between messages for ever; in the middle of one, time is limited.
        """
        while self._end - self._start < length:
            pending = self._end - self._start
            if self._start:
                self._view[:pending] = self._view[self._start : self._end]
                self._start, self._end = 0, pending
            try:
                received = self._received(self._view[pending:])
            except _TIMED_OUT:
                if pending:
                    raise PeerGone(f"silent for {self.timeout_s:g} s in a message") from None
                continue
            if not received and not pending:
                return False
            if not received:
                raise PeerGone("the connection ended in the middle of a message")
            self._end += received
        return True

    def room(self, length: int) -> memoryview:
        """Where the next `length` bytes to send go, at most `QUEUE_BYTES`; then call `queued`."""
        if self._queued + length > QUEUE_BYTES:
            self.flush()
        return self._queue[self._queued : self._queued + length]

    def queued(self, length: int) -> None:
        """`room` was filled: it is sent before this side waits for the other again."""
        self._queued += length

    def queue(self, content: bytes) -> None:
        """Send `content`, at most `QUEUE_BYTES`, before this side waits for the other again."""
        self.room(len(content))[:] = content
        self._queued += len(content)

    def flush(self) -> None:
        """Send what is queued."""
        queued, self._queued = self._queued, 0
        if queued:
            self.write(self._queue[:queued])

    def write(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send what is queued and then all parts, in one call where that works."""
        if self._queued:
            parts = (self._queue[: self._queued], *parts)
            self._queued = 0
        try:
            if len(parts) == 1 or self.encrypted:
                for part in parts:
                    self.socket.sendall(part)
                return
            self._send_parts([memoryview(part) for part in parts])
        except _TIMED_OUT:
            raise PeerGone(f"takes no data for {self.timeout_s:g} s") from None
        except OSError as error:
            raise PeerGone(f"cannot send: {_reason(error)}") from None

    def _send_parts(self, parts: list[memoryview]) -> None:
        while parts:
            sent = self.socket.sendmsg(parts)
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def send_file(self, head: bytes, fd: int, offset: int, length: int) -> None:
        """Send `head`, then bytes of the file `fd`, without bringing them here."""
        self.flush()
        end = offset + length
        try:
            self.socket.sendall(head, socket.MSG_MORE)
            while offset < end:
                sent = os.sendfile(self.socket.fileno(), fd, offset, end - offset)
                if not sent:
                    raise PeerGone("the file became shorter while it was sent")
                offset += sent
        except _TIMED_OUT:
            raise PeerGone(f"takes no data for {self.timeout_s:g} s") from None
        except OSError as error:
            raise PeerGone(f"cannot send: {_reason(error)}") from None

    def close(self) -> None:
        """End the connection; whoever reads or writes in another thread is woken."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _fill(self) -> None:
        self._start = self._end = 0
        self._end = self._receive(self._view)

    def _receive(self, target: memoryview) -> int:
        try:
            received = self._received(target)
        except _TIMED_OUT:
            raise PeerGone(f"silent for {self.timeout_s:g} s in a message") from None
        if not received:
            raise PeerGone("the connection ended in the middle of a message")
        return received

    def _received(self, target: memoryview) -> int:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise PeerGone("takes too long for the handshake")
        if self._queued:
            self.flush()
        try:
            return self.socket.recv_into(target)
        except _TIMED_OUT:
            raise
        except OSError as error:
            raise PeerGone(f"cannot receive: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, _TIMED_OUT):
        return "timed out"
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)

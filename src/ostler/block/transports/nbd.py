"""Images on an NBD server: `nbd://`, `nbds://`, `nbd+unix://` and `nbds+unix://`.

Threads that use the file at the same time get a connection each, up to `CONNECTIONS_MAX`, where the
server says that a flush on one covers the others; elsewhere they take turns on one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ostler.block.image import Buffer, Closing, Extent, merge
from ostler.block.nbd.client import ANSWER_SECONDS, Connection
from ostler.block.nbd.protocol import (
    STATE_HOLE,
    STATE_ZERO,
    Command,
    CommandFlag,
    PeerGone,
    ProtocolError,
    Transmission,
)
from ostler.block.nbd.uri import parse_url
from ostler.errors import DiskError, HostError

CONNECTIONS_MAX = 4
_STATUS_BYTES = 1 << 30
"""The range that one block status request asks about."""
_ZEROES = memoryview(bytes(1 << 20))


class NbdFile(Closing):
    """An export of an NBD server."""

    is_block_device = True
    """As a device, and unlike a file, it keeps its content when an image is made on it."""

    def __init__(self, url: str, *, readonly: bool, answer_s: float = ANSWER_SECONDS) -> None:
        self.name, self.readonly = url, readonly
        self._address, self._answer_s = parse_url(url), answer_s
        first = Connection(self._address, answer_s=answer_s)
        self._terms = first.terms
        if self._terms.flags & Transmission.READ_ONLY and not readonly:
            first.close()
            raise DiskError(f"{url}: the server offers it read-only; open it read-only")
        self._idle, self._opened, self._closed = [first], 1, False
        self._most = CONNECTIONS_MAX if self._can(Transmission.CAN_MULTI_CONN) else 1
        self._changed = threading.Condition()

    @property
    def size_bytes(self) -> int:
        """What the server said when it was opened: exports do not grow."""
        return self._terms.size_bytes

    @property
    def block_bytes(self) -> int:
        """What the server prefers requests to be multiples of."""
        return self._terms.preferred_bytes

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes, fewer only where the export ends."""
        length = max(0, min(length, self.size_bytes - offset))
        start, end = self._aligned(offset, length)
        content = bytearray(end - start)
        with self._connection() as connection:
            for at, size in self._pieces(start, end - start):
                piece = memoryview(content)[at - start : at - start + size]
                connection.read(at, piece)
        return bytes(memoryview(content)[offset - start : offset - start + length])

    def write(self, offset: int, data: Buffer) -> None:
        """Write all of `data`; it has to lie in the export."""
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        start, end = self._aligned(offset, len(view))
        if (start, end) != (offset, offset + len(view)):
            # Larger blocks than the write: those at its edges are read first.
            around = bytearray(self.read(start, end - start))
            around[offset - start : offset - start + len(view)] = view
            view = memoryview(around)
        with self._connection() as connection:
            for at, size in self._pieces(start, end - start):
                connection.write(at, view[at - start : at - start + size])

    def flush(self) -> None:
        """All that was written, on whatever connection, is durable when this returns."""
        if self._can(Transmission.SEND_FLUSH):
            with self._connection() as connection:
                connection.command(Command.FLUSH, 0, 0)

    def truncate(self, size_bytes: int) -> None:
        """An export has the size it has; a smaller disk leaves the rest alone."""
        if size_bytes > self.size_bytes:
            raise DiskError(
                f"{self.name}: an export of {self.size_bytes} bytes cannot grow to {size_bytes};"
                " serve a larger one"
            )

    def discard(self, offset: int, length: int) -> None:
        """Tell the server that the range is not needed, if it wants to know."""
        self._check(offset, length)
        if not self._can(Transmission.SEND_TRIM):
            return
        minimum = self._terms.minimum_bytes
        start, end = -(-offset // minimum) * minimum, (offset + length) // minimum * minimum
        with self._connection() as connection:
            for at, size in _split(start, end - start, _STATUS_BYTES):
                connection.command(Command.TRIM, at, size)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes."""
        self._check(offset, length)
        start, end = self._aligned(offset, length)
        if (start, end) != (offset, offset + length) or not self._can(
            Transmission.SEND_WRITE_ZEROES
        ):
            for at, size in _split(offset, length, len(_ZEROES)):
                self.write(at, _ZEROES[:size])
            return
        flags = 0 if unmap else CommandFlag.NO_HOLE
        with self._connection() as connection:
            for at, size in _split(offset, length, _STATUS_BYTES):
                connection.command(Command.WRITE_ZEROES, at, size, flags)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the server says of the range; all is data where it says nothing."""
        end = min(offset + length, self.size_bytes)
        return merge(self._extents(offset, end))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        while offset < end:
            for run, flags in self._states(offset, end):
                run = min(run, end - offset)
                hole, zero = bool(flags & STATE_HOLE), bool(flags & STATE_ZERO)
                yield Extent(offset, run, not (hole and zero), zero, None if zero else offset)
                offset += run
                if offset >= end:
                    return

    def _states(self, offset: int, end: int) -> list[tuple[int, int]]:
        if self._terms.context_id is None:
            return [(end - offset, 0)]
        start, stop = self._aligned(offset, min(end - offset, _STATUS_BYTES))
        with self._connection() as connection:
            states = connection.states(start, stop - start)
        # The first run began before what was asked for, if blocks are large.
        (run, flags), *rest = states
        skipped = offset - start
        return [(run - skipped, flags), *rest] if run > skipped else [(end - offset, 0)]

    def close(self) -> None:
        """End the connections; a second call does nothing."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _can(self, flag: Transmission) -> bool:
        return bool(self._terms.flags & flag)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or offset + length > self.size_bytes:
            raise DiskError(
                f"{self.name}: bytes {offset} to {offset + length} are not in an export of"
                f" {self.size_bytes} bytes"
            )

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        """The range in whole blocks of the server's smallest size."""
        minimum = self._terms.minimum_bytes
        start, end = offset // minimum * minimum, -(-(offset + length) // minimum) * minimum
        return start, min(end, self.size_bytes)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        return _split(offset, length, self._terms.maximum_bytes)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """A connection for the caller alone; one that broke is not used again."""
        connection = self._take()
        try:
            yield connection
        except PeerGone as error:
            self._drop(connection)
            raise PeerGone(f"{self.name}: connection to the server: {error}") from None
        except BaseException as error:
            # After an error that the server answered with, the next request can follow; after
            # anything else nobody knows what comes next.
            answered = isinstance(error, HostError) and not isinstance(error, ProtocolError)
            (self._give if answered else self._drop)(connection)
            raise
        self._give(connection)

    def _drop(self, connection: Connection) -> None:
        connection.abandon()
        with self._changed:
            self._opened -= 1
            self._changed.notify()

    def _take(self) -> Connection:
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._opened < self._most or self._closed)
            if self._closed:
                raise DiskError(f"{self.name}: was closed")
            if self._idle:
                return self._idle.pop()
            self._opened += 1
        try:
            return self._another()
        except BaseException:
            with self._changed:
                self._opened -= 1
                self._changed.notify()
            raise

    def _another(self) -> Connection:
        connection = Connection(self._address, answer_s=self._answer_s)
        if connection.terms.size_bytes != self._terms.size_bytes:
            connection.close()
            raise DiskError(f"{self.name}: the export has another size now; open it again")
        return connection

    def _give(self, connection: Connection) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(connection)
                self._changed.notify()
                return
        connection.close()


def _split(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    """Offset and length of parts of at most `most` bytes."""
    for start in range(offset, offset + length, most):
        yield start, min(most, offset + length - start)


def open_file(url: str, *, readonly: bool, lock: bool) -> NbdFile:
    """The export at `url`; locking is the server's business."""
    return NbdFile(url, readonly=readonly)

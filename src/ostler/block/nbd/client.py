"""A connection to an NBD server: the client's handshake, and one request after the other.

All that the server sends is checked before it is believed: magic numbers, cookies, and lengths
against what was asked for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ostler.block.nbd.protocol import (
    BASE_ALLOCATION,
    BLOCK_DESCRIPTOR,
    CHUNK_DONE,
    CHUNK_ERROR,
    CHUNK_MAGIC,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    EXTENTS_MAX,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    INIT_MAGIC,
    OFFSET_DATA,
    OFFSET_HOLE,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    REPLY_BYTES_MAX,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Command,
    Handshake,
    Info,
    Option,
    PeerGone,
    ProtocolError,
    Reply,
    Transmission,
)
from ostler.block.nbd.tls import client_context
from ostler.block.nbd.uri import Address
from ostler.block.nbd.wire import Wire
from ostler.errors import DiskError, HostError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""How long the server may be silent while an answer is due."""
_REPLIES_MAX = 1000
_CHUNKS_MAX = 1 << 16
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")
# What follows the magic of a chunk, and of a simple reply.
_CHUNK_REST, _SIMPLE_REST = struct.Struct(">HHQI"), struct.Struct(">IQ")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the server said of the export."""

    size_bytes: int
    flags: Transmission
    structured: bool
    context_id: int | None
    """The number of `base:allocation`, if the server knows it."""
    minimum_bytes: int = 1
    preferred_bytes: int = 4096
    maximum_bytes: int = PAYLOAD_BYTES_MAX


class Answer(NamedTuple):
    """The reply to an option."""

    kind: int
    data: bytes


class Connection:
    """A connection that has its export. For one thread at a time."""

    def __init__(self, address: Address, *, answer_s: float = ANSWER_SECONDS) -> None:
        self.address = address
        self._cookie = 0
        self._wire = Wire(_connect(address), CONNECT_SECONDS)
        try:
            self.terms = self._negotiate()
        except PeerGone as error:
            self._wire.close()
            raise PeerGone(f"{address.url}: handshake with the server: {error}") from None
        except BaseException:
            self._wire.close()
            raise
        self._wire.limit(answer_s)

    # The handshake.

    def _negotiate(self) -> Terms:
        greeting = self._wire.read(16)
        if greeting[:8] != INIT_MAGIC:
            raise ProtocolError(f"{self.address.url}: this is no NBD server")
        if greeting[8:] != OPTION_MAGIC:
            raise ProtocolError(f"{self.address.url}: the server speaks the protocol before 2011")
        (flags,) = _U16.unpack(self._wire.read(2))
        if not flags & Handshake.FIXED_NEWSTYLE:
            raise ProtocolError(
                f"{self.address.url}: the server lacks the fixed newstyle handshake"
            )
        self._no_zeroes = bool(flags & Handshake.NO_ZEROES)
        self._wire.write(_U32.pack(flags & (Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES)))
        if self.address.tls:
            self._start_tls()
        structured = self._ask(Option.STRUCTURED_REPLY)[-1].kind == Reply.ACK
        context_id = self._select_allocation() if structured else None
        return self._go(structured, context_id)

    def _start_tls(self) -> None:
        last = self._ask(Option.STARTTLS)[-1]
        if last.kind != Reply.ACK:
            raise HostError(f"{self.address.url}: the server does not offer TLS; use nbd://")
        context = client_context(self.address.certificates)
        name = self.address.tls_hostname or self.address.host or "localhost"
        try:
            self._wire.encrypt(context, server=False, hostname=name)
        except PeerGone as error:
            raise HostError(f"{self.address.url}: {error}") from None

    def _select_allocation(self) -> int | None:
        name, query = self.address.export.encode(), BASE_ALLOCATION.encode()
        data = b"".join((_U32.pack(len(name)), name, _U32.pack(1), _U32.pack(len(query)), query))
        *contexts, last = self._ask(Option.SET_META_CONTEXT, data)
        if last.kind != Reply.ACK:
            return None
        for kind, data in contexts:
            if kind == Reply.META_CONTEXT and data[4:] == query:
                return int.from_bytes(data[:4])
        return None

    def _go(self, structured: bool, context_id: int | None) -> Terms:
        name = self.address.export.encode()
        wanted = _U16.pack(1) + _U16.pack(Info.BLOCK_SIZE)
        *infos, last = self._ask(Option.GO, _U32.pack(len(name)) + name + wanted)
        if last.kind == Reply.ERR_UNSUP:
            return self._export_name(name, structured, context_id)
        if last.kind != Reply.ACK:
            raise self._refusal(last)
        terms: Terms | None = None
        sizes = (1, 4096, PAYLOAD_BYTES_MAX)
        for _, data in infos:
            kind = int.from_bytes(data[:2])
            if kind == Info.EXPORT and len(data) == INFO_EXPORT.size:
                _, size, flags = INFO_EXPORT.unpack(data)
                terms = Terms(size, Transmission(flags), structured, context_id)
            elif kind == Info.BLOCK_SIZE and len(data) == INFO_BLOCK_SIZE.size:
                sizes = INFO_BLOCK_SIZE.unpack(data)[1:]
        if terms is None:
            raise ProtocolError(
                f"{self.address.url}: the server does not say how large the disk is"
            )
        return self._checked(terms, sizes)

    def _export_name(self, name: bytes, structured: bool, context_id: int | None) -> Terms:
        """The way of servers that do not know GO: it has no room for an error."""
        self._wire.write(OPTION.pack(OPTION_MAGIC, Option.EXPORT_NAME, len(name)) + name)
        try:
            size, flags = EXPORT_NAME_REPLY.unpack(self._wire.read(EXPORT_NAME_REPLY.size))
            if not self._no_zeroes:
                self._wire.read(EXPORT_NAME_ZEROES)
        except PeerGone:
            raise self._refusal(Answer(Reply.ERR_UNKNOWN, b"")) from None
        terms = Terms(size, Transmission(flags), structured, context_id)
        return self._checked(terms, (1, 4096, PAYLOAD_BYTES_MAX))

    def _checked(self, terms: Terms, sizes: tuple[int, ...]) -> Terms:
        minimum, preferred, maximum = sizes
        if terms.size_bytes >= 1 << 63:
            raise ProtocolError(f"{self.address.url}: a disk of {terms.size_bytes} bytes")
        if not 1 <= minimum <= 65536 or minimum & (minimum - 1) or maximum < minimum:
            raise ProtocolError(f"{self.address.url}: blocks of {minimum} to {maximum} bytes")
        maximum = min(maximum, PAYLOAD_BYTES_MAX) // minimum * minimum
        return Terms(
            terms.size_bytes, terms.flags, terms.structured, terms.context_id,
            minimum, max(minimum, min(preferred, maximum)), maximum,
        )  # fmt: skip

    def _ask(self, option: Option, data: bytes = b"") -> list[Answer]:
        """Send an option; all replies, of which the last is an ACK or an error."""
        self._wire.write(OPTION.pack(OPTION_MAGIC, option, len(data)) + data)
        answers: list[Answer] = []
        while len(answers) < _REPLIES_MAX:
            magic, about, kind, length = OPTION_REPLY.unpack(self._wire.read(OPTION_REPLY.size))
            if magic != OPTION_REPLY_MAGIC or about != option or length > REPLY_BYTES_MAX:
                raise ProtocolError(
                    f"{self.address.url}: a reply that does not fit {option.name}"
                    f" (magic {magic:#x}, option {about}, {length} bytes)"
                )
            answers.append(Answer(kind, self._wire.read(length)))
            if kind == Reply.ACK or kind & 1 << 31:
                return answers
        raise ProtocolError(f"{self.address.url}: more than {_REPLIES_MAX} replies to an option")

    def _refusal(self, answer: Answer) -> DiskError:
        said = _shown(answer.data)
        name = self.address.export or "(the default)"
        match answer.kind:
            case Reply.ERR_UNKNOWN:
                what = f"there is no export {name}; list them with nbdinfo --list"
            case Reply.ERR_TLS_REQD:
                what = "the server needs TLS; use nbds://"
            case _:
                what = f"the server refuses the export {name}"
        return DiskError(f"{self.address.url}: {what}{f' (it says: {said})' if said else ''}")

    # Requests.

    def read(self, offset: int, target: memoryview) -> None:
        """Fill `target`, at most `maximum_bytes`, with what is at `offset`."""
        cookie = self._send(Command.READ, 0, offset, len(target))
        if self.terms.structured:
            self._read_chunks(cookie, offset, target)
        else:
            self._acknowledged(cookie, "read")
            self._wire.read_into(target)

    def write(self, offset: int, data: memoryview) -> None:
        """Write `data`, at most `maximum_bytes`."""
        cookie = self._send(Command.WRITE, 0, offset, len(data), data)
        self._acknowledged(cookie, "write")

    def command(self, command: Command, offset: int, length: int, flags: int = 0) -> None:
        """A request that moves no data."""
        cookie = self._send(command, flags, offset, length)
        self._acknowledged(cookie, command.name.lower().replace("_", " "))

    def states(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Lengths and flags of `base:allocation` from `offset` on: at least the first."""
        cookie = self._send(Command.BLOCK_STATUS, 0, offset, length)
        states: list[tuple[int, int]] = []
        for kind, size in self._chunks(cookie, "block status", data=True):
            if kind != Chunk.BLOCK_STATUS:
                raise self._nonsense(f"chunk {kind} for a block status")
            count, odd = divmod(size - 4, BLOCK_DESCRIPTOR.size)
            if odd or not 1 <= count <= EXTENTS_MAX:
                raise self._nonsense(f"a block status of {size} bytes")
            body = self._wire.read(size)
            if int.from_bytes(body[:4]) == self.terms.context_id:
                states = list(BLOCK_DESCRIPTOR.iter_unpack(body[4:]))
        if not states or any(not run for run, _ in states):
            raise self._nonsense("a block status of nothing")
        return states

    def close(self) -> None:
        """Say goodbye and end the connection."""
        with contextlib.suppress(PeerGone):
            self._send(Command.DISC, 0, 0, 0)
        self._wire.close()

    def abandon(self) -> None:
        """End a connection on which nobody knows what comes next."""
        self._wire.close()

    def _send(
        self, command: Command, flags: int, offset: int, length: int, data: memoryview | None = None
    ) -> int:
        self._cookie += 1
        request = REQUEST.pack(REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        if data is None:
            self._wire.write(request)
        else:
            self._wire.write(request, data)
        return self._cookie

    def _acknowledged(self, cookie: int, what: str) -> None:
        for kind, size in self._chunks(cookie, what):
            raise self._nonsense(f"chunk {kind} of {size} bytes for a {what}")

    def _read_chunks(self, cookie: int, offset: int, target: memoryview) -> None:
        missing = len(target)
        for kind, size in self._chunks(cookie, "read", data=True):
            if kind == Chunk.OFFSET_DATA and size > OFFSET_DATA.size:
                (at,) = OFFSET_DATA.unpack(self._wire.read(OFFSET_DATA.size))
                piece = self._part(target, offset, at, size - OFFSET_DATA.size)
                self._wire.read_into(piece)
            elif kind == Chunk.OFFSET_HOLE and size == OFFSET_HOLE.size:
                at, length = OFFSET_HOLE.unpack(self._wire.read(size))
                piece = self._part(target, offset, at, length)
                piece[:] = bytes(len(piece))
            else:
                raise self._nonsense(f"chunk {kind} of {size} bytes for a read")
            missing -= len(piece)
        if missing:
            raise self._nonsense(f"{missing} bytes are missing in a read")

    def _part(self, target: memoryview, offset: int, at: int, length: int) -> memoryview:
        start = at - offset
        if start < 0 or not length or start + length > len(target):
            raise self._nonsense(f"{length} bytes at {at} were not asked for")
        return target[start : start + length]

    def _chunks(self, cookie: int, what: str, *, data: bool = False) -> Iterator[tuple[int, int]]:
        """Type and length of each chunk with content, which the caller reads; errors are raised."""
        failure: HostError | None = None
        for _ in range(_CHUNKS_MAX):
            if self._is_simple(cookie, what):
                # What carries no data may be answered in either way.
                if data:
                    raise self._nonsense(f"a simple reply to a {what}")
                return
            flags, kind, about, size = _CHUNK_REST.unpack(self._wire.read(_CHUNK_REST.size))
            if about != cookie or size > PAYLOAD_BYTES_MAX + OFFSET_DATA.size:
                raise self._nonsense(f"a chunk with cookie {about}, {size} bytes")
            if kind & 1 << 15:
                failure = self._error_chunk(size, what)
            elif kind != Chunk.NONE:
                yield kind, size
            elif size or not flags & CHUNK_DONE:
                raise self._nonsense(f"an empty chunk of {size} bytes")
            if flags & CHUNK_DONE:
                if failure is not None:
                    raise failure
                return
        raise self._nonsense(f"more than {_CHUNKS_MAX} chunks for a {what}")

    def _is_simple(self, cookie: int, what: str) -> bool:
        """Whether a reply begins as a simple one; then it is read to its end."""
        (magic,) = _U32.unpack(self._wire.read(4))
        if magic == CHUNK_MAGIC:
            return False
        if magic != SIMPLE_REPLY_MAGIC:
            raise self._nonsense(f"reply magic {magic:#x}")
        error, about = _SIMPLE_REST.unpack(self._wire.read(_SIMPLE_REST.size))
        if about != cookie:
            raise self._nonsense(f"a reply with cookie {about}")
        if error:
            raise self._error(error, "", what)
        return True

    def _error_chunk(self, size: int, what: str) -> HostError:
        if not CHUNK_ERROR.size <= size <= REPLY_BYTES_MAX:
            raise self._nonsense(f"an error of {size} bytes")
        body = self._wire.read(size)
        code, length = CHUNK_ERROR.unpack_from(body)
        said = _shown(body[CHUNK_ERROR.size :][:length])
        return self._error(code, said, what)

    def _nonsense(self, what: str) -> ProtocolError:
        return ProtocolError(f"{self.address.url}: the server breaks the protocol: {what}")

    def _error(self, code: int, said: str, what: str) -> HostError:
        error = HostError(f"{self.address.url}: {what} failed: {said or os.strerror(code)}")
        error.__cause__ = OSError(code, os.strerror(code))
        return error


def _connect(address: Address) -> socket.socket:
    try:
        if address.socket is None:
            return socket.create_connection((address.host, address.port), CONNECT_SECONDS)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(CONNECT_SECONDS)
            connection.connect(str(address.socket))
        except BaseException:
            connection.close()
            raise
        return connection
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise DiskError(f"{address.url}: cannot connect: {why}; is the server running?") from None


def _shown(text: bytes) -> str:
    """What a server says, as part of one line on a terminal."""
    shown = text[:200].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in shown)

"""The server's side of transmission: one client's requests, in the order in which they come."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress

from ostler.block.nbd.export import Export, RequestError, chain_extents
from ostler.block.nbd.negotiation import Agreement
from ostler.block.nbd.protocol import (
    BLOCK_DESCRIPTOR,
    CHUNK,
    CHUNK_DONE,
    CHUNK_ERROR,
    CHUNK_MAGIC,
    EXTENTS_MAX,
    OFFSET_DATA,
    OFFSET_HOLE,
    PAYLOAD_BYTES_MAX,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Command,
    CommandFlag,
    PeerGone,
    ProtocolError,
    wire_error,
)
from ostler.block.nbd.wire import Wire
from ostler.errors import OstlerError

PIECE_BYTES = 1 << 20
"""What a request moves at a time: the memory that a connection needs, whatever it asks for."""
SENDFILE_BYTES = 32 << 10
"""From here on the kernel copies from file to socket: below, two calls cost more than the copy."""
SPARSE_BYTES = 32 << 10
"""From here on it pays to ask for holes first, if the client can be told of them."""

# Plain numbers: flag types cost more than the rest of a small request.
_FUA, _DF = int(CommandFlag.FUA), int(CommandFlag.DF)
_ALLOWED = {
    int(command): int(flags | CommandFlag.FUA)
    for command, flags in {
        Command.READ: CommandFlag.DF,
        Command.FLUSH: CommandFlag.FUA,
        Command.TRIM: CommandFlag.FUA,
        Command.CACHE: CommandFlag.FUA,
        Command.WRITE_ZEROES: CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        Command.BLOCK_STATUS: CommandFlag.REQ_ONE,
    }.items()
}
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_DATA_CHUNK, _NONE_CHUNK = int(Chunk.OFFSET_DATA), int(Chunk.NONE)


class Session:
    """A client that has an export."""

    def __init__(self, wire: Wire, agreement: Agreement) -> None:
        assert agreement.export is not None
        self.wire = wire
        self.export: Export = agreement.export
        self.structured = agreement.structured
        self.contexts = agreement.contexts
        self._buffer = memoryview(bytearray(PIECE_BYTES))

    def run(self) -> None:
        """Serve until the client leaves. `ProtocolError` or `PeerGone` when it cannot go on."""
        wire = self.wire
        while wire.wait(REQUEST.size):
            magic, flags, command, cookie, offset, length = REQUEST.unpack(wire.read(REQUEST.size))
            if magic != REQUEST_MAGIC:
                raise ProtocolError(f"request magic {magic:#x}")
            if command == _DISC:
                wire.flush()
                return
            try:
                self._serve(command, flags, cookie, offset, length)
            except (ProtocolError, PeerGone):
                raise
            except RequestError as error:
                self._fail(cookie, error.code, str(error))
            except OstlerError as error:
                self._fail(cookie, _code(error), str(error))
            except OSError as error:
                self._fail(cookie, wire_error(error.errno), error.strerror or "")

    def _serve(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        if command == _WRITE:
            self._write(flags, cookie, offset, length)
            return
        allowed = _ALLOWED.get(command)
        if allowed is None:
            raise RequestError(errno.EINVAL, f"command {command} is not known here")
        if flags & ~allowed:
            raise RequestError(errno.EINVAL, f"flags {flags:#x} with command {command}")
        if command == _READ:
            self.export.check(offset, length, writes=False)
            self._read(cookie, offset, length, whole=bool(flags & _DF))
            return
        self._serve_rarer(command, flags, cookie, offset, length)

    def _serve_rarer(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        fua, export = bool(flags & _FUA), self.export
        match command:
            case Command.BLOCK_STATUS:
                self._status(flags, cookie, offset, length)
                return
            case Command.FLUSH:
                export.flush()
            case Command.TRIM:
                export.check(offset, length, writes=True)
                export.trim(offset, length, fua=fua)
            case Command.CACHE:
                export.check(offset, length, writes=False)
                export.cache(offset, length)
            case Command.WRITE_ZEROES:
                export.check(offset, length, writes=True)
                if flags & CommandFlag.FAST_ZERO:
                    raise RequestError(errno.ENOTSUP, "not known to be faster than writing")
                unmap = not flags & CommandFlag.NO_HOLE
                export.write_zeroes(offset, length, unmap=unmap, fua=fua)
        self._done(cookie)

    def _write(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if length > PAYLOAD_BYTES_MAX:
            raise ProtocolError(f"a write of {length} bytes")
        rest = length
        try:
            if flags & ~_FUA:
                raise RequestError(errno.EINVAL, f"flags {flags:#x} with a write")
            self.export.check(offset, length, writes=True)
            while rest:
                piece = self._buffer[: min(rest, PIECE_BYTES)]
                self.wire.read_into(piece)
                rest -= len(piece)
                self.export.write(offset, piece, fua=not rest and bool(flags & _FUA))
                offset += len(piece)
        except (ProtocolError, PeerGone):
            raise
        except BaseException:
            # A refused write's data is on its way all the same.
            while rest:
                piece = self._buffer[: min(rest, PIECE_BYTES)]
                self.wire.read_into(piece)
                rest -= len(piece)
            raise
        self._done(cookie)

    def _read(self, cookie: int, offset: int, length: int, *, whole: bool) -> None:
        if length > PAYLOAD_BYTES_MAX:
            raise RequestError(errno.EINVAL, f"a read of {length} bytes")
        if not self.structured:
            self._read_simple(cookie, offset, length)
        elif whole or length < SPARSE_BYTES:
            self._data(cookie, offset, length, CHUNK_DONE)
        else:
            self._read_sparse(cookie, offset, length)

    def _read_simple(self, cookie: int, offset: int, length: int) -> None:
        head = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        self._send(head, offset, length)

    def _data(self, cookie: int, offset: int, length: int, flags: int) -> None:
        if not length:
            self._done(cookie)
            return
        size = OFFSET_DATA.size + length
        head = CHUNK.pack(CHUNK_MAGIC, flags, _DATA_CHUNK, cookie, size)
        self._send(head + OFFSET_DATA.pack(offset), offset, length)

    def _send(self, head: bytes, offset: int, length: int) -> None:
        """`head` and then the bytes. Once the head is sent, failing ends the connection."""
        export = self.export
        wire, size = self.wire, len(head) + length
        if export.fd is None:
            wire.write(head, export.read(offset, length))
        elif length < SENDFILE_BYTES:
            room = wire.room(size)
            room[: len(head)] = head
            _read_exactly(export.fd, room[len(head) :], offset)
            wire.queued(size)
        elif wire.encrypted:
            wire.write(head)
            self._send_pieces(export.fd, offset, length)
        else:
            wire.send_file(head, export.fd, offset, length)

    def _send_pieces(self, fd: int, offset: int, length: int) -> None:
        for start in range(offset, offset + length, PIECE_BYTES):
            piece = self._buffer[: min(PIECE_BYTES, offset + length - start)]
            try:
                _read_exactly(fd, piece, start)
            except OSError as error:
                # The head promised bytes: there is no room for an error any more.
                raise PeerGone(f"cannot read the image: {error.strerror}") from None
            self.wire.write(piece)

    def _read_sparse(self, cookie: int, offset: int, length: int) -> None:
        last = b""
        for start, size, zero in self._pieces(offset, length):
            self.wire.write(last) if last else None
            last = b""
            if zero:
                hole = OFFSET_HOLE.pack(start, size)
                kind, count = Chunk.OFFSET_HOLE, len(hole)
                last = CHUNK.pack(CHUNK_MAGIC, 0, kind, cookie, count) + hole
            else:
                self._data(
                    cookie, start, size, CHUNK_DONE if start + size == offset + length else 0
                )
        if last:
            # The last chunk says so: set the flag in the hole that was held back.
            self.wire.write(last[:4] + CHUNK_DONE.to_bytes(2) + last[6:])

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Runs of data and of zeros; data in pieces that fit in memory."""
        end = offset + length
        if self.export.fd is not None and _has_no_hole(self.export.fd, offset, end):
            yield offset, length, False
            return
        for extent in chain_extents(self.export.image, offset, length):
            if extent.zero:
                yield extent.offset, extent.length, True
                continue
            for start in range(extent.offset, extent.end, PIECE_BYTES):
                yield start, min(PIECE_BYTES, extent.end - start), False

    def _status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if not self.contexts:
            raise RequestError(errno.EINVAL, "no context was selected")
        if not length:
            raise RequestError(errno.EINVAL, "the status of nothing")
        self.export.check(offset, length, writes=False)
        limit = 1 if flags & CommandFlag.REQ_ONE else EXTENTS_MAX
        # All are known before the first is sent: an error has to be the only answer.
        answers = {
            number: self.export.states(context, offset, length, limit)
            for number, context in self.contexts.items()
        }
        last = max(answers)
        for number, states in answers.items():
            body = number.to_bytes(4) + b"".join(BLOCK_DESCRIPTOR.pack(*s) for s in states)
            done = CHUNK_DONE if number == last else 0
            self.wire.write(
                CHUNK.pack(CHUNK_MAGIC, done, Chunk.BLOCK_STATUS, cookie, len(body)) + body
            )

    def _done(self, cookie: int) -> None:
        if self.structured:
            self.wire.queue(CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, _NONE_CHUNK, cookie, 0))
        else:
            self.wire.queue(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie))

    def _fail(self, cookie: int, code: int, text: str) -> None:
        if not self.structured:
            self.wire.queue(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, code, cookie))
            return
        message = text.encode()[:4000]
        body = CHUNK_ERROR.pack(code, len(message)) + message
        self.wire.queue(CHUNK.pack(CHUNK_MAGIC, CHUNK_DONE, Chunk.ERROR, cookie, len(body)) + body)


def _read_exactly(fd: int, target: memoryview, offset: int) -> None:
    """Fill `target`; a file that was cut behind our back reads as zeros."""
    done = os.preadv(fd, [target], offset)
    if done < len(target):
        target[done:] = bytes(len(target) - done)


def _code(error: OstlerError) -> int:
    cause = error.__cause__
    return wire_error(cause.errno if isinstance(cause, OSError) else None)


def _has_no_hole(fd: int, offset: int, end: int) -> bool:
    with suppress(OSError):
        return os.lseek(fd, offset, os.SEEK_HOLE) >= end
    return False

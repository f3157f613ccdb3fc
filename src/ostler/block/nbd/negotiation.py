"""The server's side of the handshake: options until the client has an export."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from ostler.block.nbd.export import Export
from ostler.block.nbd.protocol import (
    BLOCK_BYTES_MIN,
    DIRTY_BITMAP,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    INIT_MAGIC,
    OPTION,
    OPTION_BYTES_MAX,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    STRING_BYTES_MAX,
    Handshake,
    Info,
    Option,
    ProtocolError,
    Reply,
)
from ostler.block.nbd.wire import Wire

OPTIONS_MAX = 1000
"""Options before an export is chosen: who sends more wants to keep us busy."""
_U16, _U32 = struct.Struct(">H"), struct.Struct(">I")


class OptionError(Exception):
    """An option that is answered with an error; the handshake goes on."""

    def __init__(self, reply: Reply, text: str) -> None:
        super().__init__(text)
        self.reply = reply


@dataclass
class Agreement:
    """What the handshake came to."""

    export: Export | None = None
    """None: the client left without one."""
    structured: bool = False
    contexts_for: str | None = None
    """The export for which contexts were selected."""
    selected: tuple[str, ...] = ()

    @property
    def contexts(self) -> dict[int, str]:
        """The contexts that were selected for this export, by their numbers in answers."""
        if self.export is None or self.contexts_for != self.export.name:
            return {}
        return {_number(self.export, context): context for context in self.selected}


@dataclass
class Negotiation:
    """One client's handshake."""

    wire: Wire
    exports: Mapping[str, Export]
    tls: ssl.SSLContext | None = None
    """With it, nothing is said before the client has started TLS."""
    agreement: Agreement = field(default_factory=Agreement)
    _no_zeroes: bool = False

    def run(self) -> Agreement:
        """Greet and answer options. `ProtocolError` or `PeerGone` when it cannot go on."""
        flags = Handshake.FIXED_NEWSTYLE | Handshake.NO_ZEROES
        self.wire.write(INIT_MAGIC + OPTION_MAGIC + _U16.pack(flags))
        (answer,) = _U32.unpack(self.wire.read(4))
        if answer & ~int(flags) or not answer & Handshake.FIXED_NEWSTYLE:
            raise ProtocolError(f"client flags {answer:#x} are not ours")
        self._no_zeroes = bool(answer & Handshake.NO_ZEROES)
        for _ in range(OPTIONS_MAX):
            if self._option():
                return self.agreement
        raise ProtocolError(f"more than {OPTIONS_MAX} options")

    def _option(self) -> bool:
        """Answer one option; whether it was the last."""
        magic, option, length = OPTION.unpack(self.wire.read(OPTION.size))
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"option magic {magic!r}")
        if length > OPTION_BYTES_MAX:
            raise ProtocolError(f"option {option} with {length} bytes")
        data = self.wire.read(length)
        try:
            return self._answer(option, data)
        except OptionError as error:
            if option == Option.EXPORT_NAME:
                raise ProtocolError(str(error)) from None
            self._reply(option, error.reply, str(error).encode())
            return False

    def _answer(self, option: int, data: bytes) -> bool:
        if option == Option.ABORT:
            self._reply(option, Reply.ACK)
            return True
        if self.tls is not None and not self.wire.encrypted and option != Option.STARTTLS:
            raise OptionError(Reply.ERR_TLS_REQD, "this server needs TLS")
        match option:
            case Option.EXPORT_NAME:
                self._export_name(data)
                return True
            case Option.STARTTLS:
                self._start_tls(data)
            case Option.LIST:
                self._list(data)
            case Option.STRUCTURED_REPLY:
                _refuse_data(data)
                self.agreement.structured = True
                self._reply(option, Reply.ACK)
            case Option.INFO:
                self._info(option, data)
            case Option.GO:
                self.agreement.export = self._info(option, data)
                return True
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                self._meta_context(option, data)
            case _:
                raise OptionError(Reply.ERR_UNSUP, f"option {option} is not known here")
        return False

    def _start_tls(self, data: bytes) -> None:
        _refuse_data(data)
        if self.wire.encrypted:
            raise OptionError(Reply.ERR_INVALID, "TLS has been started")
        if self.tls is None:
            raise OptionError(Reply.ERR_POLICY, "this server has no certificate")
        self._reply(Option.STARTTLS, Reply.ACK)
        self.wire.encrypt(self.tls, server=True, hostname=None)
        # What was agreed in clear could be an attacker's.
        self.agreement = Agreement()

    def _list(self, data: bytes) -> None:
        _refuse_data(data)
        for export in self.exports.values():
            name = export.name.encode()
            listed = _U32.pack(len(name)) + name + export.description.encode()
            self._reply(Option.LIST, Reply.SERVER, listed)
        self._reply(Option.LIST, Reply.ACK)

    def _export_name(self, data: bytes) -> None:
        export = self._find(data)
        zeroes = b"" if self._no_zeroes else bytes(EXPORT_NAME_ZEROES)
        self.wire.write(EXPORT_NAME_REPLY.pack(export.size_bytes, export.flags) + zeroes)
        self.agreement.export = export

    def _info(self, option: int, data: bytes) -> Export:
        name, rest = _string(data)
        (count,), rest = _unpack(_U16, rest)
        if len(rest) != 2 * count:
            raise OptionError(Reply.ERR_INVALID, f"{count} requests in {len(rest)} bytes")
        wanted = {number for (number,) in _U16.iter_unpack(rest)}
        export = self._find(name)
        described = INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, export.flags)
        self._reply(option, Reply.INFO, described)
        sizes = (BLOCK_BYTES_MIN, export.preferred_block_bytes, PAYLOAD_BYTES_MAX)
        self._reply(option, Reply.INFO, INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *sizes))
        for info, text in ((Info.NAME, export.name), (Info.DESCRIPTION, export.description)):
            if info in wanted:
                self._reply(option, Reply.INFO, _U16.pack(info) + text.encode())
        self._reply(option, Reply.ACK)
        return export

    def _meta_context(self, option: int, data: bytes) -> None:
        if not self.agreement.structured:
            raise OptionError(Reply.ERR_INVALID, "contexts need structured replies")
        name, rest = _string(data)
        queries = _queries(rest)
        export = self._find(name)
        listing = option == Option.LIST_META_CONTEXT
        chosen = tuple(
            context
            for context in export.contexts
            if (listing and not queries)
            or any(_matches(query, context, listing) for query in queries)
        )
        for context in chosen:
            number = 0 if listing else _number(export, context)
            self._reply(option, Reply.META_CONTEXT, _U32.pack(number) + context.encode())
        if not listing:
            self.agreement.contexts_for, self.agreement.selected = export.name, chosen
        self._reply(option, Reply.ACK)

    def _find(self, name: bytes) -> Export:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise OptionError(Reply.ERR_INVALID, "a name that is not UTF-8") from None
        export = self.exports.get(text)
        if export is None and not text and len(self.exports) == 1:
            # The default export: the only one.
            (export,) = self.exports.values()
        if export is None:
            raise OptionError(Reply.ERR_UNKNOWN, f"there is no export {text[:80]!r}")
        return export

    def _reply(self, option: int, kind: Reply, data: bytes = b"") -> None:
        self.wire.write(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data)


def _refuse_data(data: bytes) -> None:
    if data:
        raise OptionError(Reply.ERR_INVALID, "the option takes no data")


def _unpack(layout: struct.Struct, data: bytes) -> tuple[tuple[int, ...], bytes]:
    if len(data) < layout.size:
        raise OptionError(Reply.ERR_INVALID, "the option's data ends early")
    return layout.unpack_from(data), data[layout.size :]


def _string(data: bytes) -> tuple[bytes, bytes]:
    """A counted string, and what follows."""
    (length,), rest = _unpack(_U32, data)
    if length > STRING_BYTES_MAX:
        raise OptionError(Reply.ERR_TOO_BIG, f"a string of {length} bytes")
    if length > len(rest):
        raise OptionError(Reply.ERR_INVALID, "a string that ends early")
    return rest[:length], rest[length:]


def _queries(data: bytes) -> list[bytes]:
    (count,), rest = _unpack(_U32, data)
    queries = []
    # The bound is the data: each query takes at least its count.
    for _ in range(min(count, len(rest) // _U32.size)):
        query, rest = _string(rest)
        queries.append(query)
    if len(queries) != count or rest:
        raise OptionError(Reply.ERR_INVALID, f"{count} queries in the wrong number of bytes")
    return queries


def _matches(query: bytes, context: str, listing: bool) -> bool:
    """Whether a query selects a context; the name of a space does so in a list only."""
    if query == context.encode():
        return True
    spaces = (b"base:", b"qemu:", DIRTY_BITMAP.encode())
    return listing and query in spaces and context.encode().startswith(query)


def _number(export: Export, context: str) -> int:
    """What stands for the context in answers."""
    return 1 + export.contexts.index(context)

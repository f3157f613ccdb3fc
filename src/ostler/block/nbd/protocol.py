"""Numbers and layouts of the NBD protocol (doc/proto.md). All integers are big-endian."""

from __future__ import annotations

import errno
import struct
from enum import IntEnum, IntFlag

from ostler.errors import HostError

DEFAULT_PORT = 10809

INIT_MAGIC, OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
OLD_STYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF

OPTION = struct.Struct(">8sII")  # magic option length
OPTION_REPLY = struct.Struct(">QIII")  # magic option type length
REQUEST = struct.Struct(">IHHQQI")  # magic flags command cookie offset length
SIMPLE_REPLY = struct.Struct(">IIQ")  # magic error cookie
CHUNK = struct.Struct(">IHHQI")  # magic flags type cookie length
OFFSET_DATA = struct.Struct(">Q")
OFFSET_HOLE = struct.Struct(">QI")
CHUNK_ERROR = struct.Struct(">IH")
BLOCK_DESCRIPTOR = struct.Struct(">II")
INFO_EXPORT = struct.Struct(">HQH")
INFO_BLOCK_SIZE = struct.Struct(">HIII")
EXPORT_NAME_REPLY = struct.Struct(">QH")
EXPORT_NAME_ZEROES = 124

STRING_BYTES_MAX = 4096
OPTION_BYTES_MAX = 64 << 10
"""More data with one option than any client sends: it ends the connection."""
REPLY_BYTES_MAX = 64 << 10
PAYLOAD_BYTES_MAX = 32 << 20
"""The most that one request may read or write ("Block size constraints")."""
BLOCK_BYTES_MIN, BLOCK_BYTES_PREFERRED = 1, 4096
BASE_ALLOCATION = "base:allocation"
DIRTY_BITMAP = "qemu:dirty-bitmap:"
"""A context of QEMU's (docs/interop/nbd.txt): what a bitmap, whose name follows, marks."""
EXTENTS_MAX = 65536
"""Descriptors in one answer to a block status request, either way."""


class Handshake(IntFlag):
    """Flags of the greeting, of both sides."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What a client asks for before it has an export."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Reply(IntEnum):
    """Types of answers to options."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_TOO_BIG = 1 << 31 | 9


class Info(IntEnum):
    """Pieces of information about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Transmission(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """How a request wants it."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(IntEnum):
    """Types of structured reply chunks."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1
    ERROR_OFFSET = 1 << 15 | 2


CHUNK_DONE = 1
STATE_HOLE, STATE_ZERO = 1, 2
STATE_DIRTY = 1

# Errors on the wire have Linux's numbers, on every system.
ERRORS = (
    errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW,
    errno.ENOTSUP, errno.ESHUTDOWN,
)  # fmt: skip


def wire_error(code: int | None) -> int:
    """The closest error that the protocol has."""
    if code in ERRORS:
        return code
    return {
        errno.EROFS: errno.EPERM, errno.EDQUOT: errno.ENOSPC, errno.EFBIG: errno.ENOSPC,
        errno.EOPNOTSUPP: errno.ENOTSUP,
    }.get(code or 0, errno.EIO)  # fmt: skip


class ProtocolError(HostError):
    """The other side does not speak the protocol as it is written."""


class PeerGone(HostError):
    """The other side closed the connection, or was silent for too long."""

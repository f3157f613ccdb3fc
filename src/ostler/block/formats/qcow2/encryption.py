"""Encrypted qcow2: a LUKS1 header in clusters of its own (docs/interop/qcow2, "Data encryption").

The content of data clusters is encrypted, their place in the file is what numbers their sectors;
tables are in clear.

The old method, AES with the passphrase for a key, is only read. There the place on the disk is what
numbers sectors, so it is decrypted above the tables, not below them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from ostler.block.crypto import luks1
from ostler.block.crypto.cipher import CipherSpec
from ostler.block.crypto.options import LuksOptions
from ostler.block.crypto.secret import needs_passphrase
from ostler.block.formats.qcow2.header import ENCRYPTION, Header
from ostler.block.image import ImageFile, Opening
from ostler.block.source import damaged
from ostler.engine.crypto import SectorCipher
from ostler.errors import DiskError

AES, LUKS = 1, 2
HEADER_BYTES_MAX = 64 << 20
_PLACE = struct.Struct(">QQ")


class _Part:
    """The part of the file that has the LUKS header."""

    def __init__(self, file: ImageFile, offset: int, length: int) -> None:
        self.name, self.size_bytes = file.name, length
        self._file, self._offset = file, offset

    def read(self, offset: int, length: int) -> bytes:
        """The bytes there, fewer where the part ends."""
        length = max(0, min(length, self.size_bytes - offset))
        return self._file.read(self._offset + offset, length)

    def close(self) -> None:
        """The file is the image's."""


def places(header: Header) -> list[tuple[int, int]]:
    """Offset and length of the LUKS header: its clusters are in use."""
    raw = header.extensions.get(ENCRYPTION)
    return [_PLACE.unpack(raw)] if raw is not None and len(raw) == _PLACE.size else []


def is_locked(header: Header, how: Opening) -> bool:
    """Whether the image opens for its facts only."""
    return header.crypt_method != 0 and how.keyless and how.readonly and how.secret is None


def unlock(file: ImageFile, header: Header, how: Opening) -> SectorCipher | None:
    """The cipher of the data clusters, or None for an image in clear. `DiskError` without a key."""
    if header.crypt_method == 0 or is_locked(header, how):
        return None
    if header.crypt_method == AES and not file.readonly:
        raise DiskError(
            f"{file.name}: qcow2's own AES encryption is broken, and only read; convert the image:"
            " ostler image convert"
        )
    if how.secret is None:
        raise needs_passphrase(file.name)
    if header.crypt_method == AES:
        return _legacy_cipher(file.name, how.secret)
    part = _part(file, header)
    parsed = luks1.parse(part)
    return parsed.spec.cipher(file.name, luks1.unlock(part, parsed, how.secret))


def _legacy_cipher(name: str, secret: bytes) -> SectorCipher:
    """As QEMU has it: the passphrase's first bytes are the key. Nothing tells a wrong one."""
    return CipherSpec("aes", "cbc").cipher(name, secret[:16].ljust(16, b"\0"))


def _part(file: ImageFile, header: Header) -> _Part:
    found = places(header)
    if not found:
        raise damaged(file, "encryption header extension", "is missing")
    ((offset, length),) = found
    if offset % header.cluster_bytes or not luks1.HEADER_BYTES <= length <= HEADER_BYTES_MAX:
        raise damaged(file, "encryption header", f"has {length} bytes at {offset:#x}")
    return _Part(file, offset, length)


def facts(file: ImageFile, header: Header) -> dict[str, Any]:
    """What `qemu-img info` shows of an image's encryption."""
    if header.crypt_method == AES:
        return {"format": "aes"}
    return {"format": "luks", **luks1.facts(luks1.parse(_part(file, header)))}


@dataclass(frozen=True)
class NewLuks:
    """The LUKS header that a new image is to have."""

    options: LuksOptions
    header: luks1.Luks1Header
    key: bytes

    def clusters(self, header: Header) -> int:
        """How many it takes."""
        return -(-self.header.payload_offset // header.cluster_bytes)

    def write(self, file: ImageFile, header: Header, offset: int) -> None:
        """Put it at `offset`, and its place into the image's header."""
        file.truncate(offset + self.clusters(header) * header.cluster_bytes)
        luks1.add_key(
            file.name,
            self.header,
            self.key,
            self.options.secret,
            self.options.iter_time,
            lambda at, data: file.write(offset + at, data),
        )
        header.crypt_method = LUKS
        header.extensions[ENCRYPTION] = _PLACE.pack(offset, self.header.payload_offset)


def new(name: str, options: LuksOptions) -> NewLuks:
    """A header with a new key; `DiskError` where it cannot be made so."""
    options.check(name)
    header, key = luks1.new_header(
        options.spec, options.hash_alg, options.key_bytes, options.iter_time
    )
    return NewLuks(options, header, key)

"""LUKS2: reading. Header and JSON, key slots, digests, and the one segment of a disk.

Source: "LUKS2 On-Disk Format Specification" 1.1.3. Two copies of header and JSON; of the valid ones
the one with the higher sequence number counts. Binary integers are big-endian, those in JSON are
decimal, 64-bit ones as strings.

Left out on purpose, refused by name: writing, integrity (dm-integrity), reencryption, more than one
segment, detached headers' `dynamic` size with a payload elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import struct
from dataclasses import dataclass
from typing import Any

from ostler.block.crypto.cipher import HASHES, CipherSpec
from ostler.block.crypto.keys import check_iterations, merge_key, pbkdf2
from ostler.block.crypto.luks1 import wrong_passphrase
from ostler.block.source import ByteSource, damaged, read_field, unsupported
from ostler.engine.crypto import argon2

MAGIC, MAGIC_SECOND = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
VERSION = 2
HEADER_BYTES = 4096
AREA_BYTES = tuple(n << 10 for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096))
"""Sizes of header with JSON; the second header lies right behind the first."""
CHECKSUM_OFFSET, CHECKSUM_BYTES = 448, 64
SLOTS_MAX, KEY_BYTES_MAX, MATERIAL_BYTES_MAX = 32, 128, 4 << 20
ARGON2_KIB_MAX, ARGON2_PASSES_MAX, ARGON2_LANES_MAX = 1 << 20, 1000, 16
"""cryptsetup uses 1 GiB at most; more is a header that wants to hurt."""

# magic version header_bytes sequence_id label checksum_name salt uuid subsystem header_offset
_HEADER = struct.Struct(">6sHQQ48s32s64s40s48sQ")


@dataclass(frozen=True, slots=True)
class Segment:
    """Where the content is, and how it is encrypted."""

    offset: int
    size: int | None
    """None: to the end of the file."""
    iv_offset: int
    spec: CipherSpec
    sector_bytes: int


@dataclass(frozen=True, slots=True)
class Luks2Header:
    """What is read of a header: the segment, and the rest as JSON has it."""

    uuid: str
    segment: Segment
    slots: dict[str, dict[str, Any]]
    digest: dict[str, Any]


def is_luks2(source: ByteSource) -> bool:
    """Whether this begins as LUKS2, rather than LUKS1, does."""
    return source.read(0, 8) == MAGIC + VERSION.to_bytes(2)


def parse(source: ByteSource) -> Luks2Header:
    """The newer valid header. Raises `DiskError` naming what is wrong."""
    places = [(0, MAGIC)] + [(size, MAGIC_SECOND) for size in AREA_BYTES]
    found = [area for at, magic in places if (area := _area(source, at, magic)) is not None]
    if not found:
        raise damaged(source, "LUKS2 headers", "are all invalid (magic, size or checksum)")
    _, uuid, text = max(found, key=lambda area: area[0])
    return _understand(source, uuid, text)


def _area(source: ByteSource, at: int, magic: bytes) -> tuple[int, str, bytes] | None:
    """Sequence number, UUID and JSON of the header at `at`, or None when it is not valid."""
    raw = source.read(at, HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        return None
    fields = _HEADER.unpack_from(raw)
    found, version, size, sequence, _, checksum_name, _, uuid, _, offset = fields
    if found != magic or version != VERSION or size not in AREA_BYTES or offset != at:
        return None
    name = checksum_name.partition(b"\0")[0].decode("ascii", "replace")
    area = source.read(at, size)
    if len(area) < size or name not in HASHES:
        return None
    if not is_sealed(area, name):
        return None
    text = area[HEADER_BYTES:].partition(b"\0")[0]
    return sequence, uuid.partition(b"\0")[0].decode("ascii", "replace"), text


def is_sealed(area: bytes, hash_name: str) -> bool:
    """Whether a header with its JSON has the checksum that it says."""
    end = CHECKSUM_OFFSET + CHECKSUM_BYTES
    sealed = area[:CHECKSUM_OFFSET] + bytes(CHECKSUM_BYTES) + area[end:]
    return area[CHECKSUM_OFFSET:end].startswith(hashlib.new(hash_name, sealed).digest())


def _understand(source: ByteSource, uuid: str, text: bytes) -> Luks2Header:
    try:
        tree = json.loads(text)
        _require_known(source, tree["config"])
        (number, segment), *more = tree["segments"].items()
        if more:
            raise unsupported(source, "LUKS2 with more than one segment (a reencryption)")
        digests = [one for one in tree["digests"].values() if number in one["segments"]]
        if len(digests) != 1 or len(tree["keyslots"]) > SLOTS_MAX:
            raise damaged(source, "LUKS2 digests or keyslots", "are not one and up to 32")
        return Luks2Header(uuid, _segment(source, segment), tree["keyslots"], digests[0])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(source, error) from None


def _bad(source: ByteSource, error: Exception) -> Exception:
    what = " ".join(f"{type(error).__name__} {error}".split())[:100]
    return damaged(source, "LUKS2 JSON", f"is not as it has to be ({what})")


def _require_known(source: ByteSource, config: dict[str, Any]) -> None:
    mandatory = config.get("requirements", {}).get("mandatory", [])
    if mandatory:
        raise unsupported(source, f"LUKS2 with the requirement {str(mandatory[0])[:60]!r}")


def _segment(source: ByteSource, segment: dict[str, Any]) -> Segment:
    if segment["type"] != "crypt":
        raise unsupported(source, f"a LUKS2 segment of type {str(segment['type'])[:60]!r}")
    if "integrity" in segment:
        raise unsupported(source, "LUKS2 with integrity")
    algorithm, _, mode = str(segment["encryption"]).partition("-")
    sector = int(segment["sector_size"])
    if sector not in (512, 1024, 2048, 4096):
        raise damaged(source, "LUKS2 sector_size", f"is {sector}")
    offset, size = int(segment["offset"]), segment["size"]
    return Segment(
        offset,
        None if size == "dynamic" else int(size),
        int(segment["iv_tweak"]),
        CipherSpec.parse(source.name, algorithm, mode),
        sector,
    )


def unlock(source: ByteSource, header: Luks2Header, passphrase: bytes) -> bytes:
    """The key of the segment. Raises `DiskError` when the passphrase opens no slot."""
    try:
        wanted = _decoded(header.digest["digest"])
        for number in header.digest["keyslots"]:
            key = _open_slot(source, header.slots[number], number, passphrase)
            if hmac.compare_digest(_digest(source, header.digest, key, len(wanted)), wanted):
                return key
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(source, error) from None
    raise wrong_passphrase(source.name)


def _digest(source: ByteSource, digest: dict[str, Any], key: bytes, length: int) -> bytes:
    if digest["type"] != "pbkdf2":
        raise unsupported(source, f"a LUKS2 digest of type {str(digest['type'])[:60]!r}")
    iterations = int(digest["iterations"])
    check_iterations(source.name, "LUKS2 digest iterations", iterations)
    name = _hash(source, digest["hash"])
    if not 16 <= length <= 64:
        raise damaged(source, "LUKS2 digest", f"has {length} bytes")
    return pbkdf2(name, key, _decoded(digest["salt"]), iterations, length)


def _open_slot(source: ByteSource, slot: dict[str, Any], number: str, passphrase: bytes) -> bytes:
    field = f"LUKS2 keyslot {number}"
    if slot["type"] != "luks2":
        raise unsupported(source, f"{field} of type {str(slot['type'])[:60]!r}")
    area, split = slot["area"], slot["af"]
    key_bytes, stripes = int(slot["key_size"]), int(split["stripes"])
    area_key_bytes, length = int(area["key_size"]), int(slot["key_size"]) * stripes
    if not 1 <= key_bytes <= KEY_BYTES_MAX or not 1 <= length <= MATERIAL_BYTES_MAX:
        raise damaged(source, field, f"has a key of {key_bytes} bytes in {stripes} stripes")
    if not 16 <= area_key_bytes <= KEY_BYTES_MAX:
        raise damaged(source, field, f"has an area key of {area_key_bytes} bytes")
    algorithm, _, mode = str(area["encryption"]).partition("-")
    spec = CipherSpec.parse(source.name, algorithm, mode)
    area_key = _derive(source, field, slot["kdf"], passphrase, area_key_bytes)
    padded = length + -length % 512
    material = read_field(source, int(area["offset"]), padded, f"area of {field}")
    clear = spec.cipher(source.name, area_key).decrypt(material, 0)[:length]
    return merge_key(_hash(source, split["hash"]), clear, stripes)


def _derive(
    source: ByteSource, field: str, kdf: dict[str, Any], passphrase: bytes, length: int
) -> bytes:
    salt = _decoded(kdf["salt"])
    if kdf["type"] == "pbkdf2":
        iterations = int(kdf["iterations"])
        check_iterations(source.name, f"{field}'s iterations", iterations)
        return pbkdf2(_hash(source, kdf["hash"]), passphrase, salt, iterations, length)
    if kdf["type"] not in ("argon2i", "argon2id"):
        raise unsupported(source, f"{field} with {str(kdf['type'])[:60]!r}")
    passes, memory, lanes = int(kdf["time"]), int(kdf["memory"]), int(kdf["cpus"])
    limits = (passes, ARGON2_PASSES_MAX), (memory, ARGON2_KIB_MAX), (lanes, ARGON2_LANES_MAX)
    if any(not 1 <= value <= most for value, most in limits):
        raise damaged(source, field, f"wants {passes} passes, {memory} KiB and {lanes} threads")
    return argon2(
        kdf["type"], passphrase, salt, passes=passes, memory_kib=memory, lanes=lanes, length=length
    )


def _hash(source: ByteSource, name: str) -> str:
    if name not in HASHES:
        raise unsupported(source, f"LUKS2 hash {str(name)[:60]!r}")
    return name


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None

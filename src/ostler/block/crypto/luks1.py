"""LUKS1: header, key slots, and the master key behind them.

Source: "LUKS1 On-Disk Format Specification" 1.2.3; where it leaves a choice, QEMU's and
cryptsetup's. All integers are big-endian, offsets in sectors of 512 bytes. A key slot has the
master key, split and then encrypted with a key that its passphrase gives.

Nothing here knows what kind of file the header is in: qcow2 keeps the same header in a part of its
own, which it hands over as a `ByteSource`.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from ostler.block.crypto.cipher import HASHES, CipherSpec
from ostler.block.crypto.keys import (
    check_iterations,
    iterations_for,
    merge_key,
    pbkdf2,
    split_key,
)
from ostler.block.source import ByteSource, damaged, read_field, unsupported
from ostler.errors import DiskError

MAGIC = b"LUKS\xba\xbe"
VERSION = 1
SECTOR_BYTES = 512
HEADER_BYTES = 592
SLOTS, STRIPES = 8, 4000
STRIPES_MAX = 16_000
KEY_BYTES_MAX = 128
DIGEST_BYTES, SALT_BYTES = 20, 32
SLOT_ENABLED, SLOT_DISABLED = 0x00AC71F3, 0x0000DEAD

KEY_MATERIAL_SECTOR = 8
ALIGNMENT_SECTORS = 8
PAYLOAD_ALIGNMENT_SECTORS = 4096
"""2 MiB, as cryptsetup aligns it."""
DIGEST_SHARE = 8
"""The master key's digest gets this part of the time for a slot: it is no way to the passphrase."""

# magic version cipher_name cipher_mode hash_spec payload_offset key_bytes mk_digest mk_digest_salt
# mk_digest_iterations uuid
_HEADER = struct.Struct(">6sH32s32s32sII20s32sI40s")
# active iterations salt key_material_offset stripes
_SLOT = struct.Struct(">II32sII")

WriteAt = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True)
class KeySlot:
    """One way to the master key."""

    active: bool
    iterations: int
    salt: bytes
    key_material_sector: int
    stripes: int


@dataclass(frozen=True, slots=True)
class Luks1Header:
    """All that the header says."""

    spec: CipherSpec
    hash_name: str
    payload_sector: int
    key_bytes: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[KeySlot, ...]

    @property
    def payload_offset(self) -> int:
        """Where the disk's content begins, in bytes."""
        return self.payload_sector * SECTOR_BYTES

    @property
    def slot_bytes(self) -> int:
        """How much a slot's split key takes."""
        return self.key_bytes * STRIPES

    @property
    def cipher_bits(self) -> int:
        """Of the cipher's key: XTS has two in one."""
        return self.key_bytes * 8 // (2 if self.spec.mode == "xts" else 1)

    def pack(self) -> bytes:
        """The header as it is on disk."""
        fixed = _HEADER.pack(
            MAGIC, VERSION, self.spec.algorithm.encode(), self.spec.mode_text.encode(),
            self.hash_name.encode(), self.payload_sector, self.key_bytes, self.digest,
            self.digest_salt, self.digest_iterations, self.uuid.encode(),
        )  # fmt: skip
        return fixed + b"".join(
            _SLOT.pack(
                SLOT_ENABLED if slot.active else SLOT_DISABLED, slot.iterations, slot.salt,
                slot.key_material_sector, slot.stripes,
            )
            for slot in self.slots
        )  # fmt: skip


def facts(header: Luks1Header) -> dict[str, Any]:
    """What `qemu-img info` shows of a LUKS1 header."""
    spec = header.spec
    told: dict[str, Any] = {
        "ivgen-alg": spec.iv,
        "hash-alg": header.hash_name,
        "cipher-alg": f"{spec.algorithm}-{header.cipher_bits}",
        "uuid": header.uuid,
        "cipher-mode": spec.mode,
    }
    if spec.iv_hash:
        told["ivgen-hash-alg"] = spec.iv_hash
    told["slots"] = [_slot_facts(slot) for slot in header.slots]
    return told | {
        "payload-offset": header.payload_offset,
        "master-key-iters": header.digest_iterations,
    }


def _slot_facts(slot: KeySlot) -> dict[str, Any]:
    place = {"key-offset": slot.key_material_sector * SECTOR_BYTES}
    if not slot.active:
        return {"active": False, **place}
    return {"active": True, "iters": slot.iterations, **place, "stripes": slot.stripes}


def parse(source: ByteSource) -> Luks1Header:
    """The header, checked. Raises `DiskError` naming the field that is wrong."""
    raw = read_field(source, 0, HEADER_BYTES, "LUKS header")
    (magic, version, cipher, mode, hash_spec, payload, key_bytes, digest, salt, iterations,
     uuid) = _HEADER.unpack_from(raw)  # fmt: skip
    if magic != MAGIC or version != VERSION:
        raise damaged(source, "LUKS magic or version", f"is {magic!r}, {version}")
    hash_name = _text(source, "hash-spec", hash_spec)
    if hash_name not in HASHES:
        raise unsupported(source, f"LUKS hash-spec {hash_name!r}")
    if not 16 <= key_bytes <= KEY_BYTES_MAX:
        raise damaged(source, "key-bytes", f"is {key_bytes}")
    check_iterations(source.name, "mk-digest-iterations", iterations)
    spec = CipherSpec.parse(
        source.name, _text(source, "cipher-name", cipher), _text(source, "cipher-mode", mode)
    )
    slots = tuple(_slot(source, raw, index) for index in range(SLOTS))
    header = Luks1Header(
        spec, hash_name, payload, key_bytes, digest, salt, iterations,
        _text(source, "uuid", uuid), slots,
    )  # fmt: skip
    _check_slots(source, header)
    return header


def _text(source: ByteSource, field: str, raw: bytes) -> str:
    text = raw.partition(b"\0")[0]
    if not text.isascii() or not text.decode("ascii").isprintable():
        raise damaged(source, field, f"is {text!r}")
    return text.decode("ascii")


def _slot(source: ByteSource, raw: bytes, index: int) -> KeySlot:
    state, iterations, salt, sector, stripes = _SLOT.unpack_from(
        raw, _HEADER.size + index * _SLOT.size
    )
    if state not in (SLOT_ENABLED, SLOT_DISABLED):
        raise damaged(source, f"key slot {index}", f"has state {state:#x}")
    return KeySlot(state == SLOT_ENABLED, iterations, salt, sector, stripes)


def _check_slots(source: ByteSource, header: Luks1Header) -> None:
    taken: list[tuple[int, int, int]] = []
    for index, slot in enumerate(header.slots):
        if not slot.active:
            continue
        field = f"key slot {index}"
        check_iterations(source.name, f"{field}'s iterations", slot.iterations)
        if not 1 <= slot.stripes <= STRIPES_MAX:
            raise damaged(source, field, f"has {slot.stripes} stripes")
        start = slot.key_material_sector * SECTOR_BYTES
        end = start + slot.stripes * header.key_bytes
        if start < HEADER_BYTES or (header.payload_sector and end > header.payload_offset):
            raise damaged(source, field, f"lies at {start:#x} to {end:#x}, over header or payload")
        for other, first, last in taken:
            if start < last and first < end:
                raise damaged(source, field, f"overlaps key slot {other}")
        taken.append((index, start, end))


def unlock(source: ByteSource, header: Luks1Header, passphrase: bytes) -> bytes:
    """The master key. Raises `DiskError` when the passphrase opens no slot."""
    for slot in header.slots:
        if slot.active:
            key = _open_slot(source, header, slot, passphrase)
            if hmac.compare_digest(_digest(header, key), header.digest):
                return key
    raise wrong_passphrase(source.name)


def wrong_passphrase(name: str) -> DiskError:
    """The error for a secret that opens nothing."""
    return DiskError(f"{name}: the passphrase opens no key slot; give another, mind a line's end")


def _open_slot(source: ByteSource, header: Luks1Header, slot: KeySlot, passphrase: bytes) -> bytes:
    length = slot.stripes * header.key_bytes
    padded = length + -length % SECTOR_BYTES
    material = read_field(
        source, slot.key_material_sector * SECTOR_BYTES, length, "key material"
    ).ljust(padded, b"\0")
    cipher = header.spec.cipher(source.name, _slot_key(header, slot, passphrase))
    split = cipher.decrypt(material, 0)[:length]
    return merge_key(header.hash_name, split, slot.stripes)


def _slot_key(header: Luks1Header, slot: KeySlot, passphrase: bytes) -> bytes:
    return pbkdf2(header.hash_name, passphrase, slot.salt, slot.iterations, header.key_bytes)


def _digest(header: Luks1Header, key: bytes) -> bytes:
    return pbkdf2(header.hash_name, key, header.digest_salt, header.digest_iterations, DIGEST_BYTES)


def new_header(
    spec: CipherSpec, hash_name: str, key_bytes: int, milliseconds: int
) -> tuple[Luks1Header, bytes]:
    """A header without a key slot in use, and its random master key."""
    spec.check("new image")
    if hash_name not in HASHES:
        raise DiskError(f"hash {hash_name!r} is not supported; there is: {', '.join(HASHES)}")
    key, salt = secrets.token_bytes(key_bytes), secrets.token_bytes(SALT_BYTES)
    iterations = iterations_for(hash_name, DIGEST_BYTES, milliseconds // DIGEST_SHARE)
    step = _aligned(-(-key_bytes * STRIPES // SECTOR_BYTES), ALIGNMENT_SECTORS)
    slots = tuple(
        KeySlot(False, 0, bytes(SALT_BYTES), KEY_MATERIAL_SECTOR + index * step, STRIPES)
        for index in range(SLOTS)
    )
    payload = _aligned(KEY_MATERIAL_SECTOR + SLOTS * step, PAYLOAD_ALIGNMENT_SECTORS)
    header = Luks1Header(
        spec,
        hash_name,
        payload,
        key_bytes,
        b"",
        salt,
        iterations,
        str(UUID(int=uuid4().int)),
        slots,
    )
    return replace(header, digest=_digest(header, key)), key


def add_key(
    name: str, header: Luks1Header, key: bytes, passphrase: bytes, milliseconds: int, write: WriteAt
) -> Luks1Header:
    """Put the master key into the first free slot, for `passphrase`; the new header.

    The key material is written first, then the header, so that a slot in use is whole.
    """
    free = [index for index, slot in enumerate(header.slots) if not slot.active]
    if not free:
        raise DiskError(f"{name}: all {SLOTS} key slots are in use; erase one first")
    slot = replace(
        header.slots[free[0]],
        active=True,
        iterations=iterations_for(header.hash_name, header.key_bytes, milliseconds),
        salt=secrets.token_bytes(SALT_BYTES),
        stripes=STRIPES,
    )
    split = split_key(header.hash_name, key, slot.stripes)
    padded = split.ljust(len(split) + -len(split) % SECTOR_BYTES, b"\0")
    cipher = header.spec.cipher(name, _slot_key(header, slot, passphrase))
    write(slot.key_material_sector * SECTOR_BYTES, cipher.encrypt(padded, 0))
    return _with_slot(header, free[0], slot, write)


def erase_slot(name: str, header: Luks1Header, index: int, write: WriteAt) -> Luks1Header:
    """Make a slot's key unrecoverable and the slot free; the last one is kept."""
    if not 0 <= index < SLOTS or not header.slots[index].active:
        raise DiskError(f"{name}: key slot {index} is not in use")
    if sum(slot.active for slot in header.slots) == 1:
        raise DiskError(f"{name}: key slot {index} is the only one; add another key first")
    slot = header.slots[index]
    write(slot.key_material_sector * SECTOR_BYTES, secrets.token_bytes(header.slot_bytes))
    return _with_slot(
        header, index, replace(slot, active=False, iterations=0, salt=bytes(SALT_BYTES)), write
    )


def _with_slot(header: Luks1Header, index: int, slot: KeySlot, write: WriteAt) -> Luks1Header:
    slots = (*header.slots[:index], slot, *header.slots[index + 1 :])
    changed = replace(header, slots=slots)
    write(0, changed.pack())
    return changed


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment

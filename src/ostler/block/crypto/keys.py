"""How passphrases become keys, and keys survive on disks (LUKS1 on-disk format, 2.3 and 2.4)."""

from __future__ import annotations

import hashlib
import secrets
import time

from ostler.errors import DiskError

ITERATIONS_MIN = 1000
ITERATIONS_MAX = 200_000_000
"""More than any program writes, and minutes of work: a damaged or hostile header."""
_MEASURED_ITERATIONS = 20_000


def pbkdf2(hash_name: str, passphrase: bytes, salt: bytes, iterations: int, length: int) -> bytes:
    """PBKDF2 with HMAC (RFC 8018)."""
    return hashlib.pbkdf2_hmac(hash_name, passphrase, salt, iterations, length)


def iterations_for(hash_name: str, length: int, milliseconds: int) -> int:
    """As many iterations as take that long here, at least `ITERATIONS_MIN`."""
    began = time.thread_time()
    pbkdf2(hash_name, b"passphrase", bytes(32), _MEASURED_ITERATIONS, length)
    seconds = max(time.thread_time() - began, 1e-6)
    wanted = int(_MEASURED_ITERATIONS * milliseconds / 1000 / seconds)
    return min(max(wanted, ITERATIONS_MIN), ITERATIONS_MAX)


def check_iterations(name: str, field: str, iterations: int) -> None:
    """Fail when a header asks for work that no program wrote down."""
    if not 1 <= iterations <= ITERATIONS_MAX:
        raise DiskError(
            f"{name}: damaged image: {field} is {iterations}, not 1 to {ITERATIONS_MAX};"
            " restore the header from a copy"
        )


def split_key(hash_name: str, key: bytes, stripes: int) -> bytes:
    """The key over `stripes` times its length, so that losing any part loses it (AFsplit)."""
    size, mixed, parts = len(key), bytes(len(key)), []
    for _ in range(stripes - 1):
        part = secrets.token_bytes(size)
        parts.append(part)
        mixed = _diffuse(hash_name, _xor(mixed, part))
    return b"".join((*parts, _xor(mixed, key)))


def merge_key(hash_name: str, split: bytes, stripes: int) -> bytes:
    """What `split_key` was given (AFmerge)."""
    size = len(split) // stripes
    mixed = bytes(size)
    for start in range(0, size * (stripes - 1), size):
        mixed = _diffuse(hash_name, _xor(mixed, split[start : start + size]))
    return _xor(mixed, split[size * (stripes - 1) :])


def _diffuse(hash_name: str, block: bytes) -> bytes:
    """Hash each digest-sized piece with its number before it."""
    size = hashlib.new(hash_name).digest_size
    pieces = (block[at : at + size] for at in range(0, len(block), size))
    return b"".join(
        hashlib.new(hash_name, number.to_bytes(4) + piece).digest()[: len(piece)]
        for number, piece in enumerate(pieces)
    )


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(len(one))

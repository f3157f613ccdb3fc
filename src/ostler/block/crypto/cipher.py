"""Cipher specifications of dm-crypt, such as `aes` with `xts-plain64` or `cbc-essiv:sha256`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ostler.engine.crypto import SectorCipher
from ostler.errors import DiskError

ALGORITHMS = ("aes", "serpent", "twofish")
MODES = ("xts", "cbc", "ecb")
IVS = ("plain64", "plain", "essiv")
HASHES = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")
SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class CipherSpec:
    """What is encrypted how."""

    algorithm: str
    mode: str
    iv: str = "plain64"
    iv_hash: str | None = None
    """With `essiv`: what makes its key."""

    @classmethod
    def parse(cls, name: str, algorithm: str, mode: str) -> CipherSpec:
        """From the two fields of a LUKS header; `name` is the image, for messages."""
        kind, _, iv = mode.partition("-")
        iv, _, iv_hash = iv.partition(":")
        spec = cls(algorithm, kind, iv or "plain", iv_hash or None)
        if kind == "ecb" and not iv:
            spec = cls(algorithm, kind)
        spec.check(name)
        return spec

    def check(self, name: str) -> None:
        """Fail unless this is a cipher that is known here."""
        for what, given, known in (
            ("cipher", self.algorithm, ALGORITHMS),
            ("cipher mode", self.mode, MODES),
            ("IV generator", self.iv, IVS),
            ("IV hash", self.iv_hash or "sha256", HASHES),
        ):
            if given not in known:
                raise DiskError(
                    f"{name}: {what} {given!r} is not supported; there is: {', '.join(known)}"
                )
        if (self.iv == "essiv") != (self.iv_hash is not None):
            raise DiskError(f"{name}: cipher mode {self.mode_text!r}: only essiv has a hash")

    @property
    def mode_text(self) -> str:
        """As headers have it: `xts-plain64`."""
        suffix = f":{self.iv_hash}" if self.iv_hash else ""
        return f"{self.mode}-{self.iv}{suffix}"

    def cipher(self, name: str, key: bytes, sector_bytes: int = SECTOR_BYTES) -> SectorCipher:
        """The cipher with its key."""
        essiv_key = hashlib.new(self.iv_hash, key).digest() if self.iv_hash else None
        try:
            return SectorCipher(
                self.algorithm,
                self.mode,
                self.iv,
                key,
                essiv_key=essiv_key,
                sector_bytes=sector_bytes,
            )
        except ValueError as error:
            raise DiskError(f"{name}: {self.algorithm}-{self.mode_text}: {error}") from None

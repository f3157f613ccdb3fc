"""What can be chosen of a new LUKS header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ostler.block.choices import Choices
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.crypto.cipher import CipherSpec


class LuksOptions(Choices):
    """QEMU's options. `secret` is the passphrase itself; `iter_time`: milliseconds for a slot."""

    secret: bytes = b""
    cipher_alg: Literal[
        "aes-128", "aes-192", "aes-256", "serpent-128", "serpent-192", "serpent-256",
        "twofish-128", "twofish-192", "twofish-256",
    ] = "aes-256"  # fmt: skip
    cipher_mode: Literal["xts", "cbc", "ecb"] = "xts"
    ivgen_alg: Literal["plain", "plain64", "essiv"] = "plain64"
    ivgen_hash_alg: str | None = None
    hash_alg: str = "sha256"
    iter_time: int = 2000

    @property
    def spec(self) -> CipherSpec:
        """The cipher that they choose."""
        from ostler.block.crypto.cipher import CipherSpec

        iv_hash = (self.ivgen_hash_alg or "sha256") if self.ivgen_alg == "essiv" else None
        return CipherSpec(
            self.cipher_alg.partition("-")[0], self.cipher_mode, self.ivgen_alg, iv_hash
        )

    @property
    def key_bytes(self) -> int:
        """The length of the master key: XTS needs two keys."""
        bits = int(self.cipher_alg.partition("-")[2])
        return bits // 8 * (2 if self.cipher_mode == "xts" else 1)

    def check(self, name: str) -> None:
        """`DiskError` where no image can be made so."""
        if not self.secret:
            raise DiskError(
                f"{name}: an encrypted image needs a passphrase; in Python give secret=, on the"
                " command line -o key_file=PATH"
            )
        if self.iter_time < 1:
            raise DiskError(f"{name}: iter-time {self.iter_time}: give milliseconds, 2000 say")

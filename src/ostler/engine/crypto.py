"""Encryption of disk sectors and Argon2, as the extension module has them.

`SectorCipher(algorithm, mode, iv, key)`: `aes`, `serpent` or `twofish`; `xts`, `cbc` or `ecb`; and
`plain`, `plain64` or `essiv` (with `essiv_key`, the hash of the key). `encrypt` and `decrypt` take
whole sectors, the number of the first, and how much each next one's is more. `ValueError` when
something does not fit.
"""

from __future__ import annotations

from ostler._native import SectorCipher, argon2

__all__ = ["SectorCipher", "argon2"]

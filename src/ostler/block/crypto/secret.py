"""Where passphrases come from: QEMU's `--object secret`, without passphrases in clear on a
command line, where every user of the host could read them.

    secret,id=NAME,file=PATH[,format=raw|base64]

The whole file is the passphrase, a line's end included: write it with `printf`, not `echo`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from os import PathLike

from ostler.errors import ConfigError, DiskError

SECRET_BYTES_MAX = 8 << 20
"""As cryptsetup's largest key file."""
_KNOWN = ("id", "file", "format", "data")


def needs_passphrase(name: str) -> DiskError:
    """The error for an encrypted image that was opened without."""
    return DiskError(
        f"{name}: is encrypted and needs a passphrase; in Python give secret=, on the"
        " command line --key-file PATH, with a guest's disk key_file=PATH"
    )


def read_secret(path: str | PathLike[str]) -> bytes:
    """The passphrase in a file."""
    try:
        with open(path, "rb") as file:
            secret = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the passphrase: {error.strerror}") from None
    if not secret or len(secret) > SECRET_BYTES_MAX:
        raise ConfigError(f"{path}: a passphrase is 1 to {SECRET_BYTES_MAX} bytes; check the file")
    return secret


def parse_secret(text: str) -> tuple[str, bytes]:
    """Name and passphrase of what follows `--object`."""
    kind, *words = text.split(",")
    values = dict(word.partition("=")[::2] for word in words)
    unknown = [name for name in values if name not in _KNOWN]
    if kind != "secret" or unknown:
        what = f"no {unknown[0]!r} in it" if kind == "secret" else f"no object {kind!r}"
        raise ConfigError(f"--object {kind}: there is {what}; give secret,id=NAME,file=PATH")
    if "data" in values:
        raise ConfigError(
            "--object secret: data= shows the passphrase to every user of this host; put it into"
            " a file that only you may read and give file=PATH"
        )
    if not values.get("id") or not values.get("file"):
        raise ConfigError("--object secret: give id=NAME and file=PATH")
    secret = read_secret(values["file"])
    match values.get("format", "raw"):
        case "raw":
            return values["id"], secret
        case "base64":
            return values["id"], _decoded(values["file"], secret)
        case other:
            raise ConfigError(f"--object secret: format {other!r} is neither raw nor base64")


def _decoded(name: str, text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"{name}: not base64: {error}") from None


def parse_secrets(texts: Iterable[str]) -> dict[str, bytes]:
    """All secrets of a command line by name."""
    secrets: dict[str, bytes] = {}
    for text in texts:
        name, secret = parse_secret(text)
        if name in secrets:
            raise ConfigError(f"--object secret: there are two with id={name}; rename one")
        secrets[name] = secret
    return secrets


def find_secret(secrets: Mapping[str, bytes], name: str) -> bytes:
    """The passphrase that `key-secret=NAME` means."""
    try:
        return secrets[name]
    except KeyError:
        raise ConfigError(
            f"key-secret={name}: no such secret; add --object secret,id={name},file=PATH"
        ) from None

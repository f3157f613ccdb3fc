"""TLS for NBD: certificates from a directory, named as QEMU and libnbd name them."""

from __future__ import annotations

import ssl
from pathlib import Path

from ostler.errors import ConfigError

CA, CRL = "ca-cert.pem", "ca-crl.pem"


def server_context(directory: Path, *, verify_peer: bool = True) -> ssl.SSLContext:
    """With `server-cert.pem` and `server-key.pem`; clients need a certificate of `ca-cert.pem`.

    With `verify_peer` off anybody may connect, encrypted.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, directory, "server")
    if verify_peer:
        _load_ca(context, directory)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(directory: Path | None) -> ssl.SSLContext:
    """The server has to have a certificate for its name, of `ca-cert.pem` or of the system's CAs.

    `client-cert.pem` and `client-key.pem` are shown to it if they are there.
    """
    if directory is None:
        return ssl.create_default_context()
    if (directory / "client-cert.pem").exists():
        context = _context(ssl.PROTOCOL_TLS_CLIENT, directory, "client")
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_ca(context, directory)
    return context


def _context(side: int, directory: Path, who: str) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate, key = directory / f"{who}-cert.pem", directory / f"{who}-key.pem"
    _require(certificate, key)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}: cannot be used with {key}: {error}") from None
    return context


def _load_ca(context: ssl.SSLContext, directory: Path) -> None:
    _require(directory / CA)
    try:
        context.load_verify_locations(directory / CA)
        if (directory / CRL).exists():
            context.load_verify_locations(directory / CRL)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except OSError as error:
        raise ConfigError(f"{directory / CA}: cannot be used: {error}") from None


def _require(*paths: Path) -> None:
    for path in paths:
        if not path.is_file():
            raise ConfigError(
                f"{path}: no such file; make certificates with certtool or openssl, named"
                f" {CA}, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem"
            )

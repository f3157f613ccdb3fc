"""Certificates for tests of TLS, as openssl makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_certificates(directory: Path) -> None:
    """Put a CA and its certificates for localhost and a client into `directory`."""
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
           "-nodes", "-days", "2")  # fmt: skip
    ca = (directory / "ca-cert.pem", directory / "ca-key.pem")
    run(*new, "-subj", "/CN=test CA", "-out", ca[0], "-keyout", ca[1])
    for who in ("server", "client"):
        files = ("-out", directory / f"{who}-cert.pem", "-keyout", directory / f"{who}-key.pem")
        names = ("-subj", f"/CN={who}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        limits = ("-addext", "basicConstraints=critical,CA:FALSE")
        run(*new, *names, *limits, "-CA", ca[0], "-CAkey", ca[1], *files)


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)

"""NBD addresses, as github.com/NetworkBlockDevice/nbd doc/uri.md has them.

`nbd://host[:port]/export`, `nbd+unix:///export?socket=PATH`, and with TLS `nbds://` and
`nbds+unix://`; `?tls-certificates=DIR` says where certificates are, `?tls-hostname=NAME` which name
the server's has to have, if it is not the host's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ostler.block.nbd.protocol import DEFAULT_PORT, STRING_BYTES_MAX
from ostler.errors import DiskError

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")
_QUERIES = ("socket", "tls-certificates", "tls-hostname")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and which of its exports is meant."""

    url: str
    export: str
    socket: Path | None = None
    host: str = ""
    port: int = DEFAULT_PORT
    tls: bool = False
    certificates: Path | None = None
    tls_hostname: str | None = None


def parse_url(url: str) -> Address:
    """The address, or `DiskError` that says what is wrong with it."""
    try:
        parts = urlsplit(url)
        port = parts.port
        queries = parse_qs(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
    except ValueError as error:
        raise DiskError(f"{url}: not an NBD address: {error}; {_EXAMPLES}") from None
    if parts.scheme not in SCHEMES:
        raise DiskError(f"{url}: not an NBD address; {_EXAMPLES}")
    unknown = [name for name in queries if name not in _QUERIES]
    if unknown:
        raise DiskError(f"{url}: there is no {unknown[0]!r}; there is: {', '.join(_QUERIES)}")
    values = {name: given[-1] for name, given in queries.items()}
    export = unquote(parts.path.removeprefix("/"))
    if len(export.encode()) > STRING_BYTES_MAX:
        raise DiskError(f"{url[:80]}: the export's name is longer than {STRING_BYTES_MAX} bytes")
    unix = parts.scheme.endswith("+unix")
    if unix and (parts.netloc or not values.get("socket")):
        raise DiskError(f"{url}: name the socket: nbd+unix:///export?socket=/run/disk.sock")
    if not unix and ("socket" in values or not parts.hostname):
        raise DiskError(f"{url}: name the host: nbd://host:{DEFAULT_PORT}/export")
    certificates = values.get("tls-certificates")
    return Address(
        url,
        export,
        socket=Path(values["socket"]) if unix else None,
        host=parts.hostname or "",
        port=DEFAULT_PORT if port is None else port,
        tls=parts.scheme.startswith("nbds"),
        certificates=Path(certificates) if certificates else None,
        tls_hostname=values.get("tls-hostname"),
    )


_EXAMPLES = (
    "examples: nbd://localhost/export, nbd+unix:///export?socket=/run/disk.sock,"
    " nbds://host/export?tls-certificates=DIR"
)

"""`ostler image serve`: an image as a network block device."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from ostler.cli.declare import Argument, Option, echo
from ostler.cli.image import options as opt
from ostler.errors import ConfigError

if TYPE_CHECKING:
    from ostler.block.nbd.server import Server


def serve(
    image: Annotated[str, Argument(metavar="IMAGE", help="The image: a file or a URL.")],
    socket: Annotated[
        Path | None,
        Option("-k", "--socket", metavar="PATH", help="Listen on this Unix socket."),
    ] = None,
    bind: Annotated[
        str | None,
        Option("-b", "--bind", metavar="HOST", help="Listen on this host's addresses."),
    ] = None,
    port: Annotated[
        int, Option("-p", "--port", metavar="N", help="The port with --bind; 0: any free.")
    ] = 10809,
    export_name: Annotated[
        str, Option("-x", "--export-name", metavar="NAME", help="What clients ask for.")
    ] = "",
    description: Annotated[
        str, Option("-D", "--description", metavar="TEXT", help="What lists say of it.")
    ] = "",
    format: Annotated[
        str | None, Option("-f", "--format", metavar="NAME", help="The image's format.")
    ] = None,
    bitmap: Annotated[
        list[str] | None,
        Option(
            "-B",
            "--bitmap",
            metavar="NAME",
            help="Tell clients what this bitmap of the image marks (qcow2; again for more).",
        ),
    ] = None,
    read_only: Annotated[bool, Option("-r", "--read-only", help="Let clients read only.")] = False,
    once: Annotated[bool, Option("--once", help="End when the last client has left.")] = False,
    clients: Annotated[
        int, Option("-e", "--shared", metavar="N", help="Clients at the same time.")
    ] = 32,
    tls_certs: Annotated[
        Path | None,
        Option(
            "--tls-certs",
            metavar="DIR",
            help="Speak TLS only, with server-cert.pem and server-key.pem; clients need a"
            " certificate of ca-cert.pem.",
        ),
    ] = None,
    tls_verify_peer: Annotated[
        bool,
        Option(
            "--tls-verify-peer/--no-tls-verify-peer",
            help="With TLS: whether clients need a certificate.",
        ),
    ] = True,
    insecure: Annotated[
        bool, Option("--insecure", help="Listen for other hosts without TLS.")
    ] = False,
    key_file: opt.KeyFile = None,
) -> None:
    """Serve an image to NBD clients: qemu-img, nbdcopy, nbd-client, ostler itself.

    It prints the address and serves until SIGINT or SIGTERM; then all is flushed and closed.
    Without --socket and --bind it listens on localhost. Other hosts may connect only with TLS.

    Example: ostler image serve disk.qcow2 --socket disk.sock
    """
    from ostler.block import open_image
    from ostler.block.nbd.export import Export, bitmap_of
    from ostler.block.nbd.server import Server
    from ostler.block.nbd.tls import server_context

    if clients < 1:
        raise ConfigError(f"--shared {clients}: at least one client has to be let in")
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: ports are 0 to 65535")
    tls = None if tls_certs is None else server_context(tls_certs, verify_peer=tls_verify_peer)
    secret = opt.secret_of(key_file)
    with open_image(image, format=format, readonly=read_only, secret=secret) as opened:
        bitmaps = {name: bitmap_of(opened, name) for name in bitmap or ()}
        export = Export(export_name, opened, description, read_only, bitmaps=bitmaps)
        exports = {export_name: export}
        with Server(exports, tls=tls, insecure=insecure, clients_max=clients) as server:
            suffix = "s" if tls is not None else ""
            name = quote(export_name)
            if socket is not None:
                server.listen_unix(socket)
                where = quote(str(socket.resolve()))
                echo(f"nbd{suffix}+unix:///{name}?socket={where}")
            if bind is not None or socket is None:
                host = "localhost" if bind is None else bind
                port = server.listen_tcp(host, port)
                echo(f"nbd{suffix}://{_in_url(host)}:{port}/{name}")
            with _signals(server):
                server.wait(once=once)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host or "localhost"


@contextmanager
def _signals(server: Server) -> Iterator[None]:
    """Have signals end the server in good order."""

    def handle(number: int, frame: FrameType | None) -> None:
        server.request_stop()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

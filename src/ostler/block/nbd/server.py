"""The NBD server: listening sockets, a thread for each client, and an orderly end.

with Server({"": Export("", image)}) as server:
    server.listen_unix(Path("disk.sock"))
    server.wait()
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Self

from ostler.block.nbd.export import Export
from ostler.block.nbd.negotiation import Negotiation
from ostler.block.nbd.protocol import DEFAULT_PORT, PeerGone, ProtocolError
from ostler.block.nbd.session import Session
from ostler.block.nbd.wire import Wire
from ostler.errors import ConfigError, HostError
from ostler.unix_socket import remove_stale
from ostler.waiting import wait_in_slices

HANDSHAKE_SECONDS = 15.0
SILENCE_SECONDS = 30.0
"""How long a client may stop in the middle of a message, or not take an answer."""
CLIENTS_MAX = 32
_BACKLOG = 32
_WAKE, _STOP = b"w", b"s"

log = logging.getLogger(__name__)


class Server:
    """Serves exports until it is closed. Without `tls` it listens on this host only."""

    def __init__(
        self,
        exports: Mapping[str, Export],
        *,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
        clients_max: int = CLIENTS_MAX,
        silence_s: float = SILENCE_SECONDS,
        handshake_s: float = HANDSHAKE_SECONDS,
    ) -> None:
        self.exports, self.tls, self.insecure = dict(exports), tls, insecure
        self.clients_max, self.silence_s, self.handshake_s = clients_max, silence_s, handshake_s
        self.served = 0
        """Clients that came so far."""
        self._listeners: list[socket.socket] = []
        self._paths: list[Path] = []
        self._clients: dict[Wire, threading.Thread] = {}
        self._changed = threading.Condition()
        self._closing = self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._acceptor.start()

    def listen_unix(self, path: Path) -> None:
        """Listen on a socket file, for this user only. What a dead server left is replaced."""
        if remove_stale(path):
            raise HostError(f"{path}: another server listens there; stop it or give another path")
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        except OSError as error:
            listener.close()
            raise HostError(f"{path}: cannot listen: {error.strerror or error}") from None
        finally:
            os.umask(before)
        self._paths.append(path)
        self._listen(listener)

    def listen_tcp(self, host: str = "localhost", port: int = DEFAULT_PORT) -> int:
        """Listen on a port, 0 for any that is free, of all addresses of `host`; the port.

        `ConfigError` when others than this host could connect and there is no TLS.
        """
        for family, address in _addresses(host, port):
            if self.tls is None and not self.insecure and not _is_loopback(address):
                raise ConfigError(
                    f"{host}: others could read and write the disk; add --tls-certs DIR, listen on"
                    " localhost or a socket, or add --insecure if the network is yours"
                )
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind((address, port))
            except OSError as error:
                listener.close()
                where = f"{host}:{port}"
                raise HostError(f"{where}: cannot listen: {error.strerror or error}") from None
            # All addresses of a host get the port that the first one got.
            port = listener.getsockname()[1]
            self._listen(listener)
        return port

    def adopt(self, connection: socket.socket) -> None:
        """Serve a client that is connected already."""
        with self._changed:
            if self._closing or len(self._clients) >= self.clients_max:
                connection.close()
                return
            self.served += 1
            wire = Wire(connection, self.silence_s)
            thread = threading.Thread(
                target=self._client, args=(wire,), name=f"nbd-{self.served}", daemon=True
            )
            self._clients[wire] = thread
        thread.start()

    def wait(self, *, once: bool = False) -> None:
        """Until somebody requests a stop; with `once` also until clients came and all left."""
        with self._changed:
            wait_in_slices(partial(self._changed.wait_for, partial(self._is_over, once)))

    def _is_over(self, once: bool) -> bool:
        return self._stopping or (once and self.served > 0 and not self._clients)

    def request_stop(self) -> None:
        """End `wait`; takes no lock, so that a signal handler may call it."""
        self._wake.send(_STOP)

    def close(self) -> None:
        """Stop listening, end all connections, wait for their threads."""
        with self._changed:
            self._closing = True
            clients = list(self._clients.items())
        self._wake.send(_WAKE)
        self._acceptor.join()
        for wire, _ in clients:
            wire.close()
        for _, thread in clients:
            thread.join()
        for listener in (*self._listeners, self._wake, self._woken):
            listener.close()
        self._selector.close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self, listener: socket.socket) -> None:
        self._listeners.append(listener)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        # The acceptor's select may have begun without it.
        self._wake.send(_WAKE)

    def _accept(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._woken_up()
                    continue
                listener = key.fileobj
                assert isinstance(listener, socket.socket)
                # The client may be gone again, or we out of descriptors: others still come.
                with contextlib.suppress(OSError):
                    self.adopt(listener.accept()[0])
            if self._closing:
                return

    def _woken_up(self) -> None:
        if _STOP in self._woken.recv(16):
            with self._changed:
                self._stopping = True
                self._changed.notify_all()

    def _client(self, wire: Wire) -> None:
        try:
            wire.deadline = time.monotonic() + self.handshake_s
            agreement = Negotiation(wire, self.exports, self.tls).run()
            wire.deadline = None
            if agreement.export is not None:
                Session(wire, agreement).run()
        except (ProtocolError, PeerGone) as error:
            log.info("client dropped: %s", error)
        except Exception:
            log.exception("defect while serving a client")
        finally:
            wire.close()
            with self._changed:
                self._clients.pop(wire, None)
                self._changed.notify_all()


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    """Family and address of each place that `host` names; all of this host's when it is empty."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigError(f"{host}: cannot listen there: {error.strerror}") from None
    return list(
        {str(address[0]): (family, str(address[0])) for family, *_, address in found}.values()
    )


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback

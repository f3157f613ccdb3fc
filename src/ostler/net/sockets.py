"""A cable that is a socket: `--net socket=PATH`, `dgram=PATH`, `udp=HOST:PORT`.

Over a stream, each frame has its length before it, 4 bytes big-endian; a datagram is a frame. QEMU
(`-netdev stream` and `dgram`) and other machines of ours do the same.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from pathlib import Path

from ostler.errors import ConfigError
from ostler.net.backend import Backend, Events, Links, Monitor

RETRY_S = 0.5
OWNER_ONLY = 0o600


class StreamSocket(Backend):
    """A unix stream socket at `path`: called where somebody listens there, else listened at.

    A caller who loses the other end calls again; a listener waits for the next call. There is one
    peer at a time.
    """

    def __init__(
        self, links: Links, monitor: Monitor, events: Events, path: str, *, mtu: int = 0
    ) -> None:
        self.mtu = mtu
        self.link = links.stream(jumbo=False)
        self._path, self._monitor, self._events = path, monitor, events
        self._peer: socket.socket | None = None
        self._listener: socket.socket | None = None
        try:
            if not self._call():
                self._listen()
        except OSError as error:
            self.close()
            raise ConfigError(
                f"--net socket={path}: {error.strerror or error}; give a path that can be made"
            ) from error

    def _call(self) -> bool:
        """Whether somebody answers at the path."""
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            caller.connect(self._path)
        except (FileNotFoundError, ConnectionRefusedError):
            caller.close()
            return False
        except BaseException:
            caller.close()
            raise
        self._take(caller)
        return True

    def _listen(self) -> None:
        # Nobody answered: what lies there was left behind by one who was killed.
        remove_socket(self._path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        os.fchmod(self._listener.fileno(), OWNER_ONLY)
        self._listener.bind(self._path)
        self._listener.listen(1)
        self._listener.setblocking(False)
        self._monitor.watch(self._listener.fileno(), select.POLLIN, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            caller, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if self._peer is None:
            self._take(caller)
            self._events.changed()
        else:
            caller.close()

    def _take(self, peer: socket.socket) -> None:
        self._peer = peer
        self.link.attach(peer.fileno())
        self._monitor.watch(peer.fileno(), select.POLLRDHUP, self._lost)

    def _lost(self) -> None:
        self._hang_up()
        self._events.changed()
        if self._listener is None:
            self._events.report(f"--net socket={self._path}: the other end is gone; calling again")
            self._monitor.after(RETRY_S, self._call_again)

    def _call_again(self) -> None:
        try:
            answered = self._call()
        except OSError as error:
            self._events.report(f"--net socket={self._path}: {error.strerror}; it stays down")
            return
        if answered:
            self._events.changed()
        else:
            self._monitor.after(RETRY_S, self._call_again)

    def _hang_up(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            self._monitor.forget(peer.fileno())
            self.link.detach()
            peer.close()

    def close(self) -> None:
        """Hang up; the path is free again."""
        self._hang_up()
        listener, self._listener = self._listener, None
        if listener is not None:
            self._monitor.forget(listener.fileno())
            listener.close()
            remove_socket(self._path)


class UdpSocket(Backend):
    """UDP from `local` to `remote`, both `HOST:PORT`."""

    def __init__(self, links: Links, local: str, remote: str, *, mtu: int = 0) -> None:
        self.mtu = mtu
        what = f"--net udp={remote},local={local}"
        family, address = resolve(remote, what)
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            try:
                end.bind(resolve(local, what)[1])
                end.connect(address)
            except OSError as error:
                raise ConfigError(f"{what}: {error.strerror or error}; give others") from error
            self.link = links.datagram(end.fileno())


class DatagramSocket(Backend):
    """A unix datagram socket from the path `local` to the path `remote`.

    The other end may come later, and go and come again.
    """

    def __init__(
        self, links: Links, monitor: Monitor, local: str, remote: str, *, mtu: int = 0
    ) -> None:
        self.mtu = mtu
        self._monitor, self._local, self._remote = monitor, local, remote
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            remove_socket(local)
            os.fchmod(self._end.fileno(), OWNER_ONLY)
            self._end.bind(local)
        except OSError as error:
            self._end.close()
            raise ConfigError(
                f"--net dgram={remote},local={local}: {error.strerror or error}; give another path"
            ) from error
        self.link = links.datagram(self._end.fileno())
        self._connect()

    def _connect(self) -> None:
        """Connect, and again: nothing tells when another socket has the path."""
        # Where nobody is, what is sent meanwhile is lost, as on any cable.
        with suppress(OSError):
            self._end.connect(self._remote)
        self._monitor.after(RETRY_S, self._connect)

    def close(self) -> None:
        """The path is free again."""
        self._end.close()
        remove_socket(self._local)


def remove_socket(path: str) -> None:
    """Remove what was left at `path`, if it is a socket; another kind of file is in the way."""
    if Path(path).is_socket():
        Path(path).unlink(missing_ok=True)


def resolve(place: str, what: str) -> tuple[int, tuple[str, int]]:
    """The address family and address of `HOST:PORT`; `what` starts the message of an error."""
    host, _, port = place.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        number = int(port)
        if not 0 <= number < 1 << 16:
            raise ValueError(port)
        found = socket.getaddrinfo(host or "127.0.0.1", number, type=socket.SOCK_DGRAM)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: {place!r} is no HOST:PORT that can be found") from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))

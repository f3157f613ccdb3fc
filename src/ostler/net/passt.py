"""User mode networking by passt, which needs no privileges: `--net user`.

passt answers DHCP and name service itself and turns the guest's connections into its own, so the
guest reaches what this process could. It runs as a process of its own with one socket pair to us;
it confines itself (namespaces, seccomp, the user `nobody` under root) and ends when we do.

Addresses are fixed: the guest is 10.0.2.15, its gateway 10.0.2.2. The host's own loopback is out of
the guest's reach unless asked for: it is where services live that trust whoever can connect.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ostler.config import PublishConfig
from ostler.errors import ConfigError, HostError
from ostler.net.backend import Backend, Events, Links, Monitor

PROGRAM = "passt"
CURE = "apt-get install passt, or run without a network: --net none"
GUEST, NETMASK, GATEWAY = "10.0.2.15", "255.255.255.0", "10.0.2.2"
# What passt itself gives by default: the largest IP packet, rounded.
MTU = 65_520
# Frames wait here until passt has started, and while it is busy.
SOCKET_BYTES = 1 << 20
# One that ended by itself so soon would do so again.
TOO_SOON_S = 2.0
MAX_RESTARTS = 5
UNKNOWN = bytes(6)
BROADCAST = b"\xff" * 6
ETHERNET_ARP = 0x0806
# Ethernet and IPv4 addresses of 6 and 4 bytes, a request (RFC 826).
ARP_REQUEST = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
MIN_FRAME_BYTES = 60
# passt says these to its terminal when there is no syslog.
NOISE = ("Failed to send", "Failed to connect to syslog", "Don't run as root")


def is_installed() -> bool:
    """Whether there is a passt to start."""
    return shutil.which(PROGRAM) is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """How passt is started, for the guest with the address `mac`."""

    mac: bytes = UNKNOWN
    mtu: int = MTU
    publish: Sequence[PublishConfig] = ()
    host: bool = False

    def arguments(self, fd: int) -> list[str]:
        """The command line for the connected socket `fd`."""
        options = ["-f", "-F", str(fd), "-a", GUEST, "-n", NETMASK, "-g", GATEWAY]
        options += ["-m", str(self.mtu)]
        options += [] if self.host else ["--no-map-gw"]
        for forward in self.publish:
            option = "-u" if forward.protocol == "udp" else "-t"
            options += [option, f"{forward.address}/{forward.port}:{forward.guest_port}"]
        return [PROGRAM, *options]


class Passt(Backend):
    """A passt process, started anew when it ends while the guest runs."""

    def __init__(
        self, links: Links, monitor: Monitor, events: Events, settings: Settings = Settings()
    ) -> None:
        for forward in settings.publish:
            check_free(forward)
        self.mtu = settings.mtu
        # Debian 12's passt acknowledges no SYN-ACK before its client has said something.
        self.link = links.stream(jumbo=True).completing_handshakes(socket.inet_aton(GATEWAY))
        self._settings, self._monitor, self._events = settings, monitor, events
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_fd = self._says_fd = -1
        self._said = b""
        self._started = 0.0
        self._restarts = 0
        self._closed = False
        self._start()

    @property
    def pid(self) -> int | None:
        """The process that serves the guest now."""
        return self._process.pid if self._process else None

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            says_read, says_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._process = subprocess.Popen(
                    self._settings.arguments(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=says_write,
                    # Ctrl-C at the terminal is for the guest.
                    start_new_session=True,
                )
            except OSError as error:
                os.close(says_read)
                raise HostError(f"--net user: {not_started(error)}") from error
            finally:
                os.close(says_write)
            # Until it has heard from the guest, passt sends what comes in by broadcast, and the
            # guest takes no TCP from there.
            ours.sendall(_introduction(self._settings.mac))
            self.link.attach(ours.fileno())
        self._started, self._said = time.monotonic(), b""
        self._says_fd, self._exit_fd = says_read, os.pidfd_open(self._process.pid)
        self._monitor.watch(self._says_fd, select.POLLIN, self._listen)
        self._monitor.watch(self._exit_fd, select.POLLIN, self._ended)

    def _listen(self) -> None:
        """Keep the end of what it says: a last line tells why it ended."""
        try:
            said = os.read(self._says_fd, 1 << 16)
        except BlockingIOError:
            return
        self._said = (self._said + said)[-4096:]
        if not said:
            self._monitor.forget(self._says_fd)

    def _ended(self) -> None:
        process = self._reap()
        if process is None or self._closed:
            return
        self.link.detach()
        self._events.changed()
        lasted = time.monotonic() - self._started
        hopeless = process.returncode >= 0 and lasted < TOO_SOON_S
        why = _how_it_ended(process.returncode, self._said)
        if hopeless or self._restarts >= MAX_RESTARTS:
            self._events.report(f"the user mode network is gone: passt {why}")
            return
        self._restarts += 1
        try:
            self._start()
        except HostError as error:
            self._events.report(str(error))
            return
        self._events.report(f"passt {why}; it was started again, connections are lost")
        self._events.changed()

    def _reap(self) -> subprocess.Popen[bytes] | None:
        process, self._process = self._process, None
        if process is None:
            return None
        self._monitor.forget(self._exit_fd)
        process.wait()
        self._listen()
        self._monitor.forget(self._says_fd)
        os.close(self._exit_fd)
        os.close(self._says_fd)
        return process

    def close(self) -> None:
        """End passt; the monitor has ended before."""
        self._closed = True
        self.link.detach()
        if self._process is not None:
            self._process.terminate()
            self._reap()


def _introduction(mac: bytes) -> bytes:
    """The ARP announcement of the guest (RFC 5227, section 2.3), as it goes over the socket."""
    guest = socket.inet_aton(GUEST)
    arp = ARP_REQUEST + mac + guest + bytes(6) + guest
    frame = BROADCAST + mac + struct.pack(">H", ETHERNET_ARP) + arp
    frame = frame.ljust(MIN_FRAME_BYTES, b"\0")
    return struct.pack(">I", len(frame)) + frame


def check_free(forward: PublishConfig) -> None:
    """Raise `ConfigError` when the host's port cannot be had."""
    family = socket.AF_INET6 if ":" in forward.address else socket.AF_INET
    kind = socket.SOCK_DGRAM if forward.protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((forward.address, forward.port))
        except OSError as error:
            raise ConfigError(f"{forward}: {error.strerror}; give another port") from error


def not_started(error: OSError) -> str:
    """What was missing: the program, or something that it is started with."""
    if error.filename == PROGRAM and isinstance(error, FileNotFoundError):
        return f"passt is not installed; {CURE}"
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"passt cannot be started: {what}; put that right, or give --net none"


def _how_it_ended(code: int, said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    telling = [line for line in lines if line and not line.startswith(NOISE)]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"{how}: {telling[-1]}" if telling and code > 0 else how

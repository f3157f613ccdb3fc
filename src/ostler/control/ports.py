"""The host's ends of the named ports of a VM's console: objects, unix sockets, files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ostler.config import PortConfig, PortKind
from ostler.control.console import SerialConsole
from ostler.control.listener import listening
from ostler.control.pipes import ConsolePipes
from ostler.control.port_socket import PortSocket
from ostler.devices.virtio.console import Port
from ostler.errors import ConfigError


class Consoles(Mapping[str, SerialConsole]):
    """`vm.console`: the ports that have no path, by their names."""

    def __init__(self, ports: Sequence[PortConfig], idle: str | None = None) -> None:
        names = [port.name for port in ports if port.kind is PortKind.OBJECT]
        self._consoles = {name: SerialConsole(idle) for name in names}

    def __getitem__(self, name: str) -> SerialConsole:
        if name not in self._consoles:
            there_is = ", ".join(self._consoles) or "none"
            raise ConfigError(f"this VM has no port {name!r}; there is: {there_is}")
        return self._consoles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._consoles)

    def __len__(self) -> int:
        return len(self._consoles)

    def begin(self) -> None:
        """The machine is started."""
        for console in self._consoles.values():
            console.begin()

    def end(self, why: str) -> None:
        """The guest prints no more."""
        for console in self._consoles.values():
            console.end(why)


class Ends:
    """What lasts from boot to boot: consoles, listening sockets, open files."""

    def __init__(self, ports: Sequence[PortConfig], consoles: Consoles) -> None:
        self.ports, self.consoles = tuple(ports), consoles
        self.listeners: dict[str, socket.socket] = {}
        self.files: dict[str, int] = {}


@contextmanager
def open_ends(ports: Sequence[PortConfig], consoles: Consoles) -> Iterator[Ends]:
    """The ends of `ports`; `ConfigError` for a path that cannot be had."""
    ends = Ends(ports, consoles)
    with ExitStack() as stack:
        for port in ports:
            option = f"--console {port.name}"
            if port.path is not None and port.kind is PortKind.UNIX:
                ends.listeners[port.name] = stack.enter_context(listening(port.path, option))
            elif port.path is not None:
                fd = _open(port.path, option)
                stack.callback(os.close, fd)
                ends.files[port.name] = fd
        yield ends


def _open(path: Path, option: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(f"{option}: {path}: {error.strerror}; give another file") from error


class PortEnds:
    """The ends of one boot: `ports` are for the device; `close` comes when it has let go."""

    def __init__(self, ends: Ends) -> None:
        self._pipes: list[ConsolePipes | PortSocket] = []
        self._silence, write_end = os.pipe()  # what guests of a file get: nothing but the end
        os.close(write_end)
        self.ports = [self._port(ends, config) for config in ends.ports]

    def _port(self, ends: Ends, config: PortConfig) -> Port:
        name = config.name
        if name in ends.files:
            return Port(name, self._silence, ends.files[name])
        if name in ends.listeners:
            end = PortSocket(ends.listeners[name])
            port = Port(name, *end.fds, connected=False, on_open=end.set_open)
            end.on_client = port.connect
            self._pipes.append(end)
            return port
        pipes = ConsolePipes(ends.consoles[name], name="port", is_open=False)
        self._pipes.append(pipes)
        return Port(name, *pipes.fds, on_open=pipes.set_open)

    def start(self) -> None:
        """Begin to copy."""
        for pipes in self._pipes:
            pipes.start()

    def close(self) -> None:
        """End the threads, and close what is this boot's."""
        for pipes in self._pipes:
            pipes.close()
        os.close(self._silence)

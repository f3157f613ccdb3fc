"""virtio-console (virtio 1.2, section 5.3): `hvc0` in Linux, and ports with names.

A port is two host file descriptors: what comes from one is the guest's input, what the guest
prints goes to the other. Port 0 is the console; the named ones, which Linux shows under
/dev/virtio-ports, follow. With names, the driver and the device speak over two control queues.

Not modelled: emergency write, ports that come and go while the guest runs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostler.devices.virtio.device import VirtioDevice, nothing_changed
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.errors import StateError
from ostler.state import State

F_SIZE = 1 << 0
F_MULTIPORT = 1 << 1

QUEUE_SIZE = 128
# Queues come in pairs, input first: port 0, control, port 1, port 2...
CONTROL_PAIR = 1
CONSOLE_PORT_NUMBER = 0

CONTROL = struct.Struct("<IHH")
DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY = 0, 1, 2, 3
CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = 4, 5, 6, 7


def nobody_cares(is_open: bool) -> None:
    """Where it makes no difference whether the guest has a port open."""


@dataclass(slots=True)
class Port:
    """A named port. `on_open` hears, from a worker's thread, when the guest opens and closes it.

    `connected`: somebody is at the host's end; Linux lets nobody write to it before.
    """

    name: str
    input_fd: int
    output_fd: int
    connected: bool = True
    on_open: Callable[[bool], object] = nobody_cares
    announce: Callable[[], None] = nothing_changed

    def connect(self, connected: bool) -> None:
        """Somebody comes to the host's end, or leaves it; the driver is told."""
        self.connected = connected
        self.announce()


@dataclass(slots=True)
class ConsoleState(State):
    """What the driver has said: whether it takes control messages, and the ports it has open."""

    ready: bool = False
    open_ports: int = 0

    def validate(self) -> None:
        """Raise `StateError` for ports that cannot be."""
        if not 0 <= self.open_ports < 1 << 32:
            raise StateError("virtio-console: open ports out of range")


class VirtioConsole(VirtioDevice[ConsoleState]):
    """The console at `fds`, its input and output, if there is one, and `ports` with names."""

    name = "virtio-console"
    State = ConsoleState
    device_id = 3
    pci_class = 0x078000

    def __init__(
        self, fds: tuple[int, int] | None, workers: Workers, ports: Sequence[Port] = ()
    ) -> None:
        self.state = ConsoleState()
        self._fds = fds
        self.ports = dict(enumerate(ports, CONSOLE_PORT_NUMBER + 1))
        self.features = F_SIZE | (F_MULTIPORT if ports else 0)
        self.queue_sizes = (QUEUE_SIZE, QUEUE_SIZE) * (len(ports) + 2 if ports else 1)
        self._columns, self._rows = 0, 0
        self._workers = workers
        self._messages = workers.feed()
        for number, port in self.ports.items():
            port.announce = self._announcer(number, port)

    def config(self) -> bytes:
        """Columns, rows (0 by 0 while unknown), number of ports, emergency write."""
        return struct.pack("<HHII", self._columns, self._rows, len(self.ports) + 1, 0)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size, in characters, of the terminal its console is shown in."""
        self._columns, self._rows = min(columns, 0xFFFF), min(rows, 0xFFFF)
        self.announce_config()
        if self.state.ready and self._fds is not None:
            self._send_size()

    def is_open(self, name: str) -> bool:
        """Whether a program of the guest has the port of that name open."""
        numbers = [number for number, port in self.ports.items() if port.name == name]
        return any(self.state.open_ports >> number & 1 for number in numbers)

    def replace(self, state: ConsoleState) -> None:
        """Take `state`; those at the host's ends learn which ports are open."""
        before, self.state = self.state, state
        self._messages.clear()
        for number, port in self.ports.items():
            is_open = bool(state.open_ports >> number & 1)
            if is_open != bool(before.open_ports >> number & 1):
                port.on_open(is_open)

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve one direction of a port, or of the control messages."""
        pair, is_output = divmod(queue.index, 2)
        if pair == CONTROL_PAIR:
            if is_output:
                return self._workers.calls(queue, self._on_control)
            return self._messages.serve(queue)
        fds = self._fds_of(pair)
        if fds is None:
            return self._workers.calls(queue, _swallow) if is_output else self._silence(queue)
        serve = self._workers.console_output if is_output else self._workers.console_input
        return serve(queue, fds[is_output])

    def _fds_of(self, pair: int) -> tuple[int, int] | None:
        if pair == 0:
            return self._fds
        port = self.ports[pair - CONTROL_PAIR]
        return port.input_fd, port.output_fd

    def _silence(self, queue: Queue) -> Worker:
        """The input of a port 0 that is not there."""
        return self._workers.feed().serve(queue)

    # -- control messages (section 5.3.6.2) -----------------------------------------------------

    def _on_control(self, request: bytes, room: int) -> bytes:
        if len(request) >= CONTROL.size:
            number, event, value = CONTROL.unpack_from(request)
            if event == DEVICE_READY:
                self._on_ready(value == 1)
            elif event == PORT_READY and value == 1:
                self._introduce(number)
            elif event == PORT_OPEN and number in self.ports:
                self._on_open(number, value != 0)
        return b""

    def _on_ready(self, ready: bool) -> None:
        self.state.ready = ready
        if ready:
            numbers = [*([CONSOLE_PORT_NUMBER] if self._fds is not None else []), *self.ports]
            for number in numbers:
                self._send(number, PORT_ADD, 1)

    def _introduce(self, number: int) -> None:
        if number == CONSOLE_PORT_NUMBER and self._fds is not None:
            self._send(number, CONSOLE_PORT, 1)
            self._send_size()
        elif number in self.ports:
            port = self.ports[number]
            self._send(number, PORT_NAME, 1, port.name.encode())
            self._send(number, PORT_OPEN, port.connected)

    def _on_open(self, number: int, is_open: bool) -> None:
        bit = 1 << number
        was_open = bool(self.state.open_ports & bit)
        self.state.open_ports = self.state.open_ports & ~bit | (bit if is_open else 0)
        if is_open != was_open:
            self.ports[number].on_open(is_open)

    def _announcer(self, number: int, port: Port) -> Callable[[], None]:
        def announce() -> None:
            if self.state.ready:
                self._send(number, PORT_OPEN, port.connected)

        return announce

    def _send_size(self) -> None:
        # Kernels before 2025 take the first number for the rows, against the specification.
        if self._rows:
            size = struct.pack("<HH", self._columns, self._rows)
            self._send(CONSOLE_PORT_NUMBER, RESIZE, 0, size)

    def _send(self, number: int, event: int, value: int, more: bytes = b"") -> None:
        # A driver that takes none of its messages while it provokes more loses some.
        self._messages.put(CONTROL.pack(number, event, value) + more)


def _swallow(request: bytes, room: int) -> bytes:
    """The output of a port that is not there."""
    return b""

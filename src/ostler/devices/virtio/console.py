"""virtio-console (virtio 1.2, section 5.3): one port, `hvc0` in Linux.

The port is two host file descriptors: what comes from one is the guest's input, what the guest
prints goes to the other.

Not modelled: further ports (F_MULTIPORT), emergency write.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.state import State

F_SIZE = 1 << 0

INPUT_QUEUE = 0
QUEUE_SIZE = 128


@dataclass(slots=True)
class ConsoleState(State):
    """Nothing: the size of the terminal is the host's, and the rest is the queues."""


class VirtioConsole(VirtioDevice[ConsoleState]):
    """A console reading from `input_fd` and writing to `output_fd`."""

    name = "virtio-console"
    State = ConsoleState
    device_id = 3
    pci_class = 0x078000

    def __init__(self, input_fd: int, output_fd: int, workers: Workers) -> None:
        self.state = ConsoleState()
        self.queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)
        self.features = F_SIZE
        self._columns, self._rows = 0, 0
        self._input_fd = input_fd
        self._output_fd = output_fd
        self._workers = workers

    def config(self) -> bytes:
        """Columns, rows (0 by 0 while unknown), number of ports, emergency write."""
        return struct.pack("<HHII", self._columns, self._rows, 1, 0)

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size, in characters, of the terminal it is shown in."""
        self._columns, self._rows = min(columns, 0xFFFF), min(rows, 0xFFFF)
        self.announce_config()

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve one direction."""
        if queue.index == INPUT_QUEUE:
            return self._workers.console_input(queue, self._input_fd)
        return self._workers.console_output(queue, self._output_fd)

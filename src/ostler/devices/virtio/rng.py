"""virtio-rng (virtio 1.2, section 5.4): random bytes from the host's generator."""

from __future__ import annotations

from dataclasses import dataclass

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.state import State

QUEUE_SIZE = 64


@dataclass(slots=True)
class RngState(State):
    """Nothing: the device is its queue."""


class VirtioRng(VirtioDevice[RngState]):
    """An entropy source that gives at most `bytes_per_second`; 0 is no limit."""

    name = "virtio-rng"
    State = RngState
    device_id = 4
    pci_class = 0x00FF00

    def __init__(self, workers: Workers, bytes_per_second: int = 0) -> None:
        self.state = RngState()
        self.queue_sizes = (QUEUE_SIZE,)
        self._workers = workers
        self._bytes_per_second = bytes_per_second

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve the request queue."""
        return self._workers.rng(queue, self._bytes_per_second)

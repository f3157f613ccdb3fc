"""A source of random numbers that are not: Linux's `virtio_rng` reads them as /dev/hwrng."""

from dataclasses import dataclass

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.machine.virt import VirtBoard
from ostler.state import State


@dataclass(slots=True)
class CounterState(State):
    """Nothing of the configuration space can change: there is none."""


class Counter(VirtioDevice[CounterState]):
    """An entropy device (virtio 1.2, section 5.4) whose bytes count up."""

    name, State = "counter", CounterState
    device_id = 4
    pci_class = 0xFF0000
    queue_sizes = (8,)

    def __init__(self, workers: Workers) -> None:
        self.state = CounterState()
        self.workers = workers
        self.given = 0

    def start(self, features: int, queue: Queue) -> Worker:
        return self.workers.calls(queue, self.answer)

    def answer(self, request: bytes, room: int) -> bytes:
        """The driver sends nothing and has `room` bytes for us to fill."""
        first, self.given = self.given, self.given + room
        return bytes(number & 0xFF for number in range(first, self.given))


def plug(board: VirtBoard) -> None:
    board.plug_virtio("counter", Counter(board.host.workers))

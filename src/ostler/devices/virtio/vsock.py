"""virtio-vsock (virtio 1.2, section 5.10): stream sockets between the guest and the host.

The engine's workers carry the packets; the host's ends are unix sockets (see `control/vsock.py`).

Not modelled: SOCK_SEQPACKET.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.state import State

F_STREAM = 1 << 0

RECEIVE_QUEUE, TRANSMIT_QUEUE, _EVENT_QUEUE = range(3)
QUEUE_SIZE = 256
TRANSPORT_RESET = 0


@dataclass(slots=True)
class VsockState(State):
    """Nothing: connections are the host's and end with the machine."""


class VirtioVsock(VirtioDevice[VsockState]):
    """The guest with the context id `cid`; host programs call at the socket `listener_fd`."""

    name = "virtio-vsock"
    State = VsockState
    device_id = 19
    pci_class = 0x028000

    def __init__(self, workers: Workers, cid: int, listener_fd: int, path: str) -> None:
        self.state = VsockState()
        self.cid = cid
        self.queue_sizes = (QUEUE_SIZE,) * 3
        self.features = F_STREAM
        self._hub = workers.vsock(cid, listener_fd, path)
        self._events = workers.feed()

    def config(self) -> bytes:
        """`struct virtio_vsock_config`."""
        return struct.pack("<Q", self.cid)

    def replace(self, state: VsockState) -> None:
        """Connections of another time are gone."""
        self.state = state
        self._hub.reset()
        self._events.clear()

    def drop_connections(self) -> None:
        """Close every connection and tell the driver, as after a migration (section 5.10.6.9)."""
        self._hub.reset()
        self._events.put(struct.pack("<I", TRANSPORT_RESET))

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve one queue."""
        if queue.index == RECEIVE_QUEUE:
            return self._hub.receive(queue)
        if queue.index == TRANSMIT_QUEUE:
            return self._hub.transmit(queue)
        return self._events.serve(queue)

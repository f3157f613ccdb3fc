"""virtio-9p (virtio 1.2 lists it as device 9; Linux's net/9p/trans_virtio.c): a shared directory.

The tag is in the configuration space; the one queue carries 9P messages, which `p9.server` answers
on the queue's own thread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.p9.server import Server
from ostler.devices.virtio.p9.tree import Tree
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.state import State

F_MOUNT_TAG = 1 << 0
QUEUE_SIZE = 128


@dataclass(slots=True)
class ShareState(State):
    """Nothing: open files are the host's and do not survive the machine."""


class VirtioShare(VirtioDevice[ShareState]):
    """The directory `root` under the name `tag`; `ConfigError` when there is no such directory."""

    name = "virtio-9p"
    State = ShareState
    device_id = 9
    pci_class = 0x018000

    def __init__(self, workers: Workers, root: Path, tag: str, *, readonly: bool = False) -> None:
        self.state = ShareState()
        self.queue_sizes = (QUEUE_SIZE,)
        self.features = F_MOUNT_TAG
        self._tag = tag.encode()
        self._tree = Tree(root, readonly=readonly)
        self._server = Server(self._tree)
        self._workers = workers

    def config(self) -> bytes:
        """The tag, its length before it."""
        return struct.pack("<H", len(self._tag)) + self._tag

    def close(self) -> None:
        """Close every file and the directory."""
        self._server.close()
        self._tree.close()

    def replace(self, state: ShareState) -> None:
        """A driver that begins anew holds no files."""
        self.state = state
        self._server.close()

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve the request queue."""
        return self._workers.calls(queue, self._server.answer)

"""The contract of a virtio device: what it is, what it offers, how its queues are served.

As a `Device`, its range is its device-specific configuration space; its state is what of that the
driver can change. Everything else the driver sees belongs to the transport.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

from ostler.devices.device import Device
from ostler.devices.virtio.workers import Queue, Worker
from ostler.state import State

# Feature bits of every device (virtio 1.2, section 6).
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
F_RING_PACKED = 1 << 34
F_IN_ORDER = 1 << 35
F_RING_RESET = 1 << 40
RING_FEATURES = (
    F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1 | F_RING_PACKED | F_IN_ORDER | F_RING_RESET
)

V = TypeVar("V", bound=State)


def nothing_changed() -> None:
    """What a device announces configuration changes to before a transport carries it."""


class VirtioDevice(Device[V]):
    """Base of the virtio devices."""

    abstract = True

    device_id: ClassVar[int]
    """The number of the device type (virtio 1.2, section 5)."""
    pci_class: ClassVar[int]
    """Class, subclass and interface in PCI configuration space."""

    queue_sizes: tuple[int, ...] = ()
    """The largest size of each queue, powers of two."""
    features: int = 0
    """The device-specific feature bits offered."""
    ring_features: int = RING_FEATURES
    """The features of its queues that are offered. Workers push buffers in the order of their pops;
    where something else serves the queues, or in another order, leave out what it cannot do."""
    announce_config: Callable[[], None] = staticmethod(nothing_changed)
    """Set by the transport: tells the driver that the configuration space has changed."""

    def config(self) -> bytes:
        """The device-specific configuration space; its length never changes."""
        return b""

    def read(self, offset: int, size: int) -> int:
        """A load from the configuration space; zeros past its end."""
        return int.from_bytes(self.config()[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A store to the configuration space: ignored unless a device says otherwise."""

    def accept(self, features: int) -> bool:
        """Whether this set of negotiated features makes sense; called before FEATURES_OK."""
        return True

    def close(self) -> None:
        """Give host resources back; the workers have been stopped."""

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve `queue` with the negotiated `features`."""
        raise NotImplementedError

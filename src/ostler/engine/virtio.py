"""What the workers that serve virtqueues are told of a queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class QueueSetup(Protocol):
    """A virtqueue as its driver has configured it; addresses are guest physical."""

    @property
    def size(self) -> int:
        """Entries; a power of two where the ring is split."""

    @property
    def desc_table(self) -> int:
        """The descriptor table, or the packed ring."""

    @property
    def avail_ring(self) -> int:
        """The available ring."""

    @property
    def used_ring(self) -> int:
        """The used ring."""

    @property
    def next_avail(self) -> int:
        """The next entry of the available ring."""

    @property
    def next_used(self) -> int:
        """The next entry of the used ring."""

    @property
    def event_idx(self) -> bool:
        """`VIRTIO_F_EVENT_IDX` was negotiated."""

    @property
    def indirect(self) -> bool:
        """`VIRTIO_F_INDIRECT_DESC` was negotiated."""

    @property
    def packed(self) -> bool:
        """`VIRTIO_F_RING_PACKED` was negotiated.

        The driver's and the device's event suppression structures are then at `avail_ring` and
        `used_ring`."""

    @property
    def kick_fd(self) -> int:
        """The eventfd that the driver's doorbell writes to; it is duplicated."""

    @property
    def interrupt(self) -> object:
        """An `MsiRoute`, something to call, or `None`: how used buffers are announced.

        A route works without the interpreter; a call is made from the worker's thread.
        """

    @property
    def on_broken(self) -> Callable[[], object]:
        """Called once from the worker's thread when the driver broke the ring's rules."""

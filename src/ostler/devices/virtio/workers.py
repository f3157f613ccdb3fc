"""What serves a virtqueue once the driver has started it: the engine's workers, as protocols.

Python negotiates and configures; a worker parses the ring, executes the requests and interrupts
the guest on its own thread, without the interpreter. Tests hand in fakes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ostler.devices.pci.msix import MsiRoute


@dataclass(frozen=True, slots=True)
class Queue:
    """A virtqueue as the driver has configured it; addresses are guest physical."""

    index: int
    size: int
    desc_table: int
    avail_ring: int
    used_ring: int
    next_avail: int
    next_used: int
    event_idx: bool
    indirect: bool
    packed: bool
    """The layout of section 2.8. `avail_ring` and `used_ring` are then the driver's and the
    device's event suppression structures, and bit 15 of a position is its wrap counter."""
    kick_fd: int
    """An eventfd: the driver's doorbell."""
    interrupt: MsiRoute | Callable[[], None] | None
    """How used buffers are announced: an MSI route, a call (for INTx), or not at all."""
    on_broken: Callable[[], None]
    """Called once, from the worker's thread, when the driver broke the ring's rules."""


class Worker(Protocol):
    """One queue being served."""

    def position(self) -> tuple[int, int]:
        """The next entries of the available and the used ring, between two requests."""

    def stop(self) -> tuple[int, int]:
        """Finish the request in flight, end the thread, and return the position."""


class BlkBackend(Protocol):
    """A disk shared by the queues of one virtio-blk device."""

    writeback: bool
    """Whether a write may be answered before it is on stable storage."""

    def serve(self, queue: Queue) -> Worker:
        """Serve block requests; `ValueError` when the rings are not in guest memory."""


class Workers(Protocol):
    """Starts workers. Each raises `ValueError` when the rings are not in guest memory."""

    def disk(self, fd: int, size_bytes: int, readonly: bool, serial: bytes) -> BlkBackend:
        """A disk that is `size_bytes` of the file or block device `fd` from its start."""

    def rng(self, queue: Queue) -> Worker:
        """Fill buffers with random bytes."""

    def console_input(self, queue: Queue, fd: int) -> Worker:
        """Hand the bytes read from `fd` to the guest."""

    def console_output(self, queue: Queue, fd: int) -> Worker:
        """Write the guest's bytes to `fd`."""

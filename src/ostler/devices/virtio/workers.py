"""What serves a virtqueue once the driver has started it: the engine's workers, as protocols.

Python negotiates and configures; a worker parses the ring, executes the requests and interrupts
the guest on its own thread, without the interpreter. Tests hand in fakes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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

    def limit(self, bytes_per_second: int, requests_per_second: int) -> None:
        """At most so much from now on, on all queues together; 0 is no limit."""

    def serve(self, queue: Queue) -> Worker:
        """Serve block requests; `ValueError` when the rings are not in guest memory."""


class BalloonBackend(Protocol):
    """What gives the memory back that a virtio-balloon device is given; serves its queues."""

    @property
    def returned_bytes(self) -> int:
        """Bytes given back so far; what was given back twice counts twice."""

    def keep_reported(self, keep: bool) -> None:
        """Whether reported and lent pages keep their contents."""

    def inflate(self, queue: Queue) -> Worker:
        """Take the pages that the guest puts into the balloon."""

    def deflate(self, queue: Queue) -> Worker:
        """Let the guest have pages back."""

    def reports(self, queue: Queue) -> Worker:
        """Take the free pages that the guest reports by itself."""

    def hints(self, queue: Queue, on_command: Callable[[int], object]) -> Worker:
        """Take the free pages that the guest lends; `on_command` hears each command id."""

    def statistics(
        self,
        queue: Queue,
        wanted_fd: int,
        on_stats: Callable[[list[tuple[int, int]]], object],
    ) -> Worker:
        """Hand `on_stats` the (tag, value) pairs, again after each write to `wanted_fd`."""


class Feed(Protocol):
    """What a device written in Python says to the driver unasked."""

    def put(self, message: bytes) -> bool:
        """Add a message; false when too many wait already, and it is dropped."""

    def clear(self) -> None:
        """Drop what waits."""

    def serve(self, queue: Queue) -> Worker:
        """Fill the driver's buffers, one message each; what does not fit is cut off."""


class VsockHub(Protocol):
    """The connections of a virtio-vsock device."""

    def reset(self) -> None:
        """Close all of them."""

    def receive(self, queue: Queue) -> Worker:
        """Serve the queue on which the guest receives."""

    def transmit(self, queue: Queue) -> Worker:
        """Serve the queue on which the guest sends."""


class ScsiBackend(Protocol):
    """The units of a virtio-scsi device; serves its queues."""

    def attach(
        self,
        target: int,
        lun: int,
        disk: Any,
        *,
        disc: bool,
        readonly: bool,
        serial: bytes,
        discard: bool,
        writeback: bool,
        granularity_bytes: int,
    ) -> None:
        """Put a unit over the data path `disk` at an address."""

    def detach(self, target: int, lun: int) -> bool:
        """Take the unit away; whether there was one."""

    def eject(self, target: int, lun: int) -> bool:
        """Take the disc out of a drive; whether there is such a drive."""

    def insert(self, target: int, lun: int, disk: Any) -> bool:
        """Put the data path `disk` into a drive as its disc; whether there is such a drive."""

    def pass_through(self, target: int, lun: int, path: str) -> int:
        """Have commands passed on to the host's SCSI device at `path`; the most data of one.

        `OSError` when it cannot be opened, `ValueError` for what is none.
        """

    def set_sizes(self, cdb_bytes: int, sense_bytes: int) -> None:
        """Take the driver's sizes of command blocks and sense data."""

    def control(self, queue: Queue) -> Worker:
        """Serve the control queue."""

    def requests(self, queue: Queue) -> Worker:
        """Serve a request queue."""


class Cable(Protocol):
    """The host's end of a network card's cable."""

    @property
    def up(self) -> bool:
        """Whether somebody is at the other end."""


class NicBackend(Protocol):
    """What the queues of one network card share."""

    announcing: bool
    """Whether the driver was asked to announce itself and has not done so."""

    @property
    def kernel_features(self) -> int | None:
        """The features of rings with which the kernel serves the queues; `None` if it does not."""

    def serve_in_kernel(self, queue: Queue, pair: int, transmit: bool) -> Worker:
        """Have the kernel serve a queue of pair number `pair`; `OSError` when it refuses."""

    @property
    def mac(self) -> bytes:
        """The address, which the driver may have changed."""

    def negotiate(self, features: int) -> None:
        """Begin with the driver's features: its settings are those of a new start."""

    def resume(self, features: int) -> None:
        """Go on with what was negotiated before."""

    def settings(self) -> dict[str, Any]:
        """What the driver has set: the fields of a `NetState`, without `announcing`."""

    def restore(self, settings: dict[str, Any]) -> None:
        """Take settings that were saved."""

    def counters(self) -> Sequence[Sequence[int]]:
        """Frames, bytes, dropped and faulty frames received, and the same of those sent."""

    def receive(self, queue: Queue, pair: int) -> Worker:
        """Serve the receive queue of pair number `pair`."""

    def transmit(self, queue: Queue, pair: int) -> Worker:
        """Serve its transmit queue."""

    def control(self, queue: Queue) -> Worker:
        """Serve the control queue."""


Handler = Callable[[bytes, int], bytes]
"""Answers a request of the driver, given its bytes and the most that the answer may have."""


class Workers(Protocol):
    """Starts workers. Each raises `ValueError` when the rings are not in guest memory."""

    def calls(self, queue: Queue, handler: Handler) -> Worker:
        """Call `handler` for each request, on the worker's thread.

        An exception there is a defect of the device: it is reported, and the driver sees a device
        that needs a reset.
        """

    def scsi(self) -> ScsiBackend:
        """A SCSI host without units."""

    def vsock(self, cid: int, listener_fd: int, path: str) -> VsockHub:
        """Sockets of guest `cid`: it is called at `listener_fd` and calls at `path`_port."""

    def feed(self) -> Feed:
        """Messages for the driver."""

    def balloon(self) -> BalloonBackend:
        """A memory balloon."""

    def disk(self, disk: Any, readonly: bool, serial: bytes) -> BlkBackend:
        """A disk of what the data path `disk` of an image holds."""

    def nic(self, link: Any, mac: bytes, pairs: int) -> NicBackend:
        """A network card on `link`, which is one of the engine's cables."""

    def ethernet(self, model: str, link: Any, mac: bytes) -> Any:
        """An emulated Ethernet controller (`ostler.devices.nic.card.Chip`) on such a link."""

    def rng(self, queue: Queue, bytes_per_second: int) -> Worker:
        """Fill buffers with random bytes, at most so many a second; 0 is no limit."""

    def console_input(self, queue: Queue, fd: int) -> Worker:
        """Hand the bytes read from `fd` to the guest."""

    def console_output(self, queue: Queue, fd: int) -> Worker:
        """Write the guest's bytes to `fd`."""

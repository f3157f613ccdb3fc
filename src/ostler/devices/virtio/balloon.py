"""virtio-balloon (virtio 1.2, section 5.5): gives memory that the guest can spare to the host.

Three ways, all served by the engine's workers, which return the pages to the host at once:

- the balloon proper: the host sets a target, the driver takes pages from the guest until it is met;
- free page reporting: the driver tells of free pages by itself, and may use them at any time;
- free page hinting: asked to, the driver lends all its free pages until told that it is done.

Not modelled: the legacy interface, telling the host before deflating (F_MUST_TELL_HOST), which no
page needs here: it is there again when it is touched.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.errors import StateError
from ostler.state import State

F_STATS_VQ = 1 << 1
F_DEFLATE_ON_OOM = 1 << 2
F_FREE_PAGE_HINT = 1 << 3
F_PAGE_POISON = 1 << 4
F_PAGE_REPORTING = 1 << 5

QUEUE_SIZE = 128
BALLOON_PAGE_BYTES = 4096
ACTUAL_OFFSET, POISON_OFFSET = 4, 12
# Command ids of hinting; from 2 on each stands for a round.
HINT_STOP, HINT_DONE, HINT_FIRST = 0, 1, 2

# VIRTIO_BALLOON_S_*; memory is in bytes, the rest are counts.
STATISTICS = {
    0: "swap_in_bytes",
    1: "swap_out_bytes",
    2: "major_faults",
    3: "minor_faults",
    4: "free_bytes",
    5: "total_bytes",
    6: "available_bytes",
    7: "cache_bytes",
    8: "hugetlb_allocations",
    9: "hugetlb_failures",
}


@dataclass(slots=True)
class BalloonState(State):
    """The configuration space: pages asked for and pages in the balloon, hinting, poison.

    `hint_round` is the last command id that stood for a round: the driver takes no id twice.
    """

    wanted_pages: int = 0
    actual_pages: int = 0
    hint_command: int = HINT_STOP
    poison: int = 0
    hint_round: int = HINT_DONE

    def validate(self) -> None:
        """Raise `StateError` for what a register cannot hold."""
        pages = (self.wanted_pages, self.actual_pages)
        words = (*pages, self.hint_command, self.hint_round, self.poison)
        if not all(0 <= word < 1 << 32 for word in words):
            raise StateError("balloon: a register out of range")


class VirtioBalloon(VirtioDevice[BalloonState]):
    """The balloon of a guest with `memory_bytes` of RAM.

    With `deflate_on_oom`, a guest that runs out of memory takes pages from the balloon; with
    `reporting`, free pages come back to the host by themselves.
    """

    name = "virtio-balloon"
    State = BalloonState
    device_id = 5
    pci_class = 0x00FF00

    def __init__(
        self,
        workers: Workers,
        memory_bytes: int,
        *,
        deflate_on_oom: bool = True,
        reporting: bool = True,
    ) -> None:
        self.state = BalloonState()
        self.memory_bytes = memory_bytes
        self.features = F_STATS_VQ | F_FREE_PAGE_HINT | F_PAGE_POISON
        self.features |= F_DEFLATE_ON_OOM if deflate_on_oom else 0
        self.features |= F_PAGE_REPORTING if reporting else 0
        self.queue_sizes = (QUEUE_SIZE,) * (5 if reporting else 4)
        self.statistics: dict[str, int] = {}
        self._news = threading.Condition()
        self._statistics_number = 0
        self._statistics_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._statistics_served = False
        self._backend = workers.balloon()

    def close(self) -> None:
        """Close the descriptor by which statistics are asked for."""
        os.close(self._statistics_fd)

    # -- the host's side ----------------------------------------------------------------------

    @property
    def target_bytes(self) -> int:
        """What the guest is asked to be content with."""
        return self.memory_bytes - self.state.wanted_pages * BALLOON_PAGE_BYTES

    def set_target(self, target_bytes: int) -> None:
        """Ask the guest to be content with `target_bytes`, at most its memory."""
        self.state.wanted_pages = (self.memory_bytes - target_bytes) // BALLOON_PAGE_BYTES
        self.announce_config()

    @property
    def guest_bytes(self) -> int:
        """What the guest has now, as the driver last said."""
        return max(self.memory_bytes - self.state.actual_pages * BALLOON_PAGE_BYTES, 0)

    @property
    def returned_bytes(self) -> int:
        """Bytes the guest gave back so far; what was given back twice counts twice."""
        return self._backend.returned_bytes

    def fresh_statistics(self, timeout_s: float) -> dict[str, int] | None:
        """The guest's statistics of now; `None` when it has not answered in time."""
        with self._news:
            seen = self._statistics_number
            if self._statistics_served:
                os.eventfd_write(self._statistics_fd, 1)
            answered = self._news.wait_for(lambda: self._statistics_number != seen, timeout_s)
            return self.statistics if answered else None

    def collect_free_pages(self) -> None:
        """Have the driver lend all free pages for a moment; the host gets them meanwhile."""
        following = self.state.hint_round + 1
        self.state.hint_round = following if following < 1 << 32 else HINT_FIRST
        self.state.hint_command = self.state.hint_round
        self.announce_config()

    # -- the driver's side --------------------------------------------------------------------

    def config(self) -> bytes:
        """`struct virtio_balloon_config`."""
        state = self.state
        words = (state.wanted_pages, state.actual_pages, state.hint_command, state.poison)
        return struct.pack("<4I", *words)

    def write(self, offset: int, size: int, value: int) -> None:
        """The driver says how many pages the balloon has, or what free pages are filled with."""
        if (offset, size) == (ACTUAL_OFFSET, 4):
            self.state.actual_pages = value
        elif (offset, size) == (POISON_OFFSET, 4):
            self.state.poison = value
            self._backend.keep_reported(value != 0)

    def reset(self) -> None:
        """The balloon is empty again; what the host wants stays."""
        self.replace(BalloonState(wanted_pages=self.state.wanted_pages))

    def replace(self, state: BalloonState) -> None:
        """Take `state`; the workers follow its poison."""
        self.state = state
        self._backend.keep_reported(state.poison != 0)

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve a queue by its role."""
        return self._roles(features)[queue.index](queue)

    def _roles(self, features: int) -> list[Callable[[Queue], Worker]]:
        """What the queues are for.

        The specification numbers all queues there can be; Linux leaves out those whose feature was
        not negotiated. A driver that takes every feature reads it either way.
        """
        backend = self._backend
        optional: tuple[tuple[int, Callable[[Queue], Worker]], ...] = (
            (F_STATS_VQ, self._serve_statistics),
            (F_FREE_PAGE_HINT, lambda queue: backend.hints(queue, self._on_hint_command)),
            (F_PAGE_REPORTING, backend.reports),
        )
        taken = [serve for feature, serve in optional if features & feature]
        left = [serve for feature, serve in optional if not features & feature]
        return [backend.inflate, backend.deflate, *taken, *left]

    def _serve_statistics(self, queue: Queue) -> Worker:
        worker = self._backend.statistics(queue, self._statistics_fd, self._on_statistics)
        self._statistics_served = True
        return worker

    def _on_statistics(self, values: list[tuple[int, int]]) -> None:
        with self._news:
            self.statistics = {STATISTICS[tag]: value for tag, value in values if tag in STATISTICS}
            self._statistics_number += 1
            self._news.notify_all()

    def _on_hint_command(self, command: int) -> None:
        """The end of a round: the driver may have its pages back."""
        if command == HINT_STOP and self.state.hint_command >= HINT_FIRST:
            self.state.hint_command = HINT_DONE
            self.announce_config()

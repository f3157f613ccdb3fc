"""Fakes for what PCI and virtio devices are handed: a bus, interrupt routes, ring workers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ostler.devices.device import IrqLine
from ostler.devices.pci.device import ReadWrite, Space
from ostler.devices.virtio.workers import BlkBackend, Handler, NicBackend, Queue
from ostler.errors import ConfigError


class FakeLine:
    """An interrupt line that remembers every level it was set to."""

    def __init__(self) -> None:
        self.level = False
        self.levels: list[bool] = []

    def set_level(self, level: bool) -> None:
        """Drive the line."""
        self.level = level
        self.levels.append(level)


class FakeRoute:
    """An MSI route that remembers the messages it sent, as (address, data)."""

    def __init__(self) -> None:
        self.message = (0, 0)
        self.sent: list[tuple[int, int]] = []
        self.pending = False
        self._masked = True

    @property
    def masked(self) -> bool:
        """Whether messages wait."""
        return self._masked

    @masked.setter
    def masked(self, masked: bool) -> None:
        self._masked = masked
        if not masked and self.pending:
            self.pending = False
            self.sent.append(self.message)

    def update(self, address: int, data: int) -> None:
        """Replace the message."""
        self.message = (address, data)

    def signal(self) -> None:
        """Send the message or remember to."""
        if self._masked:
            self.pending = True
        else:
            self.sent.append(self.message)


class FakeBus:
    """Two address spaces of ranges; unclaimed loads give ones, doorbells are counted."""

    def __init__(self) -> None:
        self.ranges: dict[tuple[Space, int], tuple[int, ReadWrite | int]] = {}
        self.rings: list[int] = []

    def add(self, space: Space, base: int, size: int, device: ReadWrite, name: str = "") -> None:
        """Add a range; `ConfigError` when it overlaps another."""
        self._add(space, base, size, device)

    def add_eventfd(
        self, space: Space, base: int, size: int, fd: int, name: str = "doorbell"
    ) -> None:
        """Add a doorbell."""
        self._add(space, base, size, fd)

    def remove(self, space: Space, base: int) -> None:
        """Remove the range at `base`."""
        del self.ranges[space, base]

    def read(self, space: Space, address: int, size: int) -> int:
        """A load as the guest would make it."""
        found = self._find(space, address)
        if found is None:
            return (1 << 8 * size) - 1
        base, target = found
        return 0 if isinstance(target, int) else target.read(address - base, size)

    def write(self, space: Space, address: int, size: int, value: int) -> None:
        """A store as the guest would make it."""
        found = self._find(space, address)
        if found is not None:
            base, target = found
            if isinstance(target, int):
                self.rings.append(target)
            else:
                target.write(address - base, size, value)

    def _add(self, space: Space, base: int, size: int, target: ReadWrite | int) -> None:
        for (other_space, other), (other_size, _) in self.ranges.items():
            if other_space == space and base < other + other_size and other < base + size:
                raise ConfigError(f"{space} {base:#x} overlaps {other:#x}")
        self.ranges[space, base] = (size, target)

    def _find(self, space: Space, address: int) -> tuple[int, ReadWrite | int] | None:
        for (other_space, base), (size, target) in self.ranges.items():
            if other_space == space and base <= address < base + size:
                return base, target
        return None


@dataclass
class FakeWorker:
    """A queue that nobody serves; its position is what a test says."""

    kind: str
    queue: Queue
    at: tuple[int, int] = (0, 0)
    stopped: bool = False
    handler: Handler | None = None

    def position(self) -> tuple[int, int]:
        """Where the worker stands."""
        return self.at

    def stop(self) -> tuple[int, int]:
        """End it."""
        self.stopped = True
        return self.at


@dataclass
class FakeImage:
    """A disk image that no worker opens."""

    disk: object = None
    size_bytes: int = 1 << 20
    readonly: bool = False
    block_bytes: int = 4096


@dataclass
class FakeDisk:
    """What the workers know of a disk."""

    workers: FakeWorkers
    disk: object
    readonly: bool
    serial: bytes
    writeback: bool = True
    limits: tuple[int, int] = (0, 0)

    def limit(self, bytes_per_second: int, requests_per_second: int) -> None:
        """Noted."""
        self.limits = (bytes_per_second, requests_per_second)

    def serve(self, queue: Queue) -> FakeWorker:
        """A block worker."""
        return self.workers.start("blk", queue)


@dataclass
class FakeBalloon:
    """A balloon that keeps whatever the guest gives."""

    workers: FakeWorkers
    returned_bytes: int = 0
    keeps_reported: bool = False
    on_command: Callable[[int], object] | None = None
    on_stats: Callable[[list[tuple[int, int]]], object] | None = None

    def keep_reported(self, keep: bool) -> None:
        """Remember it."""
        self.keeps_reported = keep

    def inflate(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("inflate", queue)

    def deflate(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("deflate", queue)

    def reports(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("reports", queue)

    def hints(self, queue: Queue, on_command: Callable[[int], object]) -> FakeWorker:
        """A worker; the test calls `on_command`."""
        self.on_command = on_command
        return self.workers.start("hints", queue)

    def statistics(
        self, queue: Queue, wanted_fd: int, on_stats: Callable[[list[tuple[int, int]]], object]
    ) -> FakeWorker:
        """A worker; the test calls `on_stats`."""
        self.on_stats = on_stats
        return self.workers.start("statistics", queue)


@dataclass
class FakeFeed:
    """Messages that stay where they are."""

    workers: FakeWorkers
    messages: list[bytes] = field(default_factory=list)

    def put(self, message: bytes) -> bool:
        """Keep it."""
        self.messages.append(message)
        return True

    def clear(self) -> None:
        """Forget them."""
        self.messages.clear()

    def serve(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("feed", queue)


@dataclass
class FakeVsock:
    """Connections that are only counted away."""

    workers: FakeWorkers
    resets: int = 0

    def reset(self) -> None:
        """Remember it."""
        self.resets += 1

    def receive(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("vsock-receive", queue)

    def transmit(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("vsock-transmit", queue)


@dataclass
class FakeScsi:
    """Units that are only listed."""

    workers: FakeWorkers
    units: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    sizes: tuple[int, int] = (32, 96)

    def attach(self, target: int, lun: int, disk: Any, **how: Any) -> None:
        """List it."""
        self.units[target, lun] = {"disk": disk, **how}

    def detach(self, target: int, lun: int) -> bool:
        """Strike it out."""
        return self.units.pop((target, lun), None) is not None

    def eject(self, target: int, lun: int) -> bool:
        """Remember that there is no disc."""
        return self.insert(target, lun, None)

    def insert(self, target: int, lun: int, disk: Any) -> bool:
        """Remember the disc."""
        unit = self.units.get((target, lun), {})
        unit["disk"] = disk
        return bool(unit.get("disc"))

    def pass_through(self, target: int, lun: int, path: str) -> int:
        """List it."""
        self.units[target, lun] = {"path": path}
        return 1 << 19

    def set_sizes(self, cdb_bytes: int, sense_bytes: int) -> None:
        """Remember them."""
        self.sizes = (cdb_bytes, sense_bytes)

    def control(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("control", queue)

    def requests(self, queue: Queue) -> FakeWorker:
        """A worker."""
        return self.workers.start("requests", queue)


@dataclass
class FakeCable:
    """A cable that a test plugs in and pulls."""

    up: bool = True


@dataclass
class FakeNic:
    """What the workers know of a network card."""

    workers: FakeWorkers
    mac: bytes
    announcing: bool = False
    features: int = 0
    held: dict[str, Any] = field(default_factory=lambda: {"mac": bytes(6)})
    kernel_features: int | None = None
    kernel_refuses: bool = False

    def negotiate(self, features: int) -> None:
        """Begin."""
        self.features = features

    def resume(self, features: int) -> None:
        """Go on."""
        self.features = features

    def settings(self) -> dict[str, Any]:
        """What was restored."""
        return dict(self.held)

    def restore(self, settings: dict[str, Any]) -> None:
        """Take settings."""
        self.held = dict(settings)

    def counters(self) -> Sequence[Sequence[int]]:
        """Nothing has come or gone."""
        return ((0,) * 4,) * 2

    def serve_in_kernel(self, queue: Queue, pair: int, transmit: bool) -> FakeWorker:
        """The kernel."""
        if self.kernel_refuses:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        return self.workers.start(f"kernel {'transmit' if transmit else 'receive'}{pair}", queue)

    def receive(self, queue: Queue, pair: int) -> FakeWorker:
        """A receive worker."""
        return self.workers.start(f"receive{pair}", queue)

    def transmit(self, queue: Queue, pair: int) -> FakeWorker:
        """A transmit worker."""
        return self.workers.start(f"transmit{pair}", queue)

    def control(self, queue: Queue) -> FakeWorker:
        """A control worker."""
        return self.workers.start("control", queue)


class FakeRegisters:
    """Registers that keep what is written."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def read(self, offset: int, size: int) -> int:
        """What was written."""
        return int.from_bytes(self.bytes.get(offset + n, 0) for n in range(size)[::-1])

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep it."""
        self.bytes.update({offset + n: value >> 8 * n & 0xFF for n in range(size)})


class FakeChip:
    """An Ethernet controller that moves nothing."""

    def __init__(self) -> None:
        self.registers = FakeRegisters()
        self.interrupting = False
        self.line: IrqLine | None = None
        self.commanded = (False, False)
        self.link = False
        self.stopped = False

    def window(self, bar: int) -> FakeRegisters:
        """The same for each."""
        return self.registers

    def connect(self, line: IrqLine) -> None:
        """Keep it."""
        self.line = line

    def command(self, intx_disabled: bool, master: bool) -> None:
        """Remember it."""
        self.commanded = (intx_disabled, master)

    def set_link(self, up: bool) -> None:
        """Remember it."""
        self.link = up

    def reset(self) -> None:
        """Forget what was written."""
        self.registers.bytes.clear()

    def save(self) -> dict[str, list[int]]:
        """What was written."""
        written = sorted(self.registers.bytes.items())
        return {"registers": [word for item in written for word in item]}

    def load(self, saved: dict[str, list[int]]) -> None:
        """Take what was saved; `ValueError` when it is something else."""
        words = saved.get("registers", [0])
        if len(words) % 2:
            raise ValueError("no state of this chip: registers")
        self.registers.bytes = dict(zip(words[::2], words[1::2], strict=True))

    def counters(self) -> Sequence[Sequence[int]]:
        """Nothing has come or gone."""
        return ((0,) * 4,) * 2

    def stop(self) -> None:
        """Remember it."""
        self.stopped = True


@dataclass
class FakeWorkers:
    """Starts `FakeWorker`s and remembers them; `refuse` makes it find no memory at the rings."""

    started: list[FakeWorker] = field(default_factory=list)
    disks: list[FakeDisk] = field(default_factory=list)
    balloons: list[FakeBalloon] = field(default_factory=list)
    nics: list[FakeNic] = field(default_factory=list)
    kernel_features: int | None = None
    """What the kernel can serve network cards with."""
    refuse: bool = False

    def disk(self, disk: object, readonly: bool, serial: bytes) -> BlkBackend:
        """A disk."""
        self.disks.append(FakeDisk(self, disk, readonly, serial))
        return self.disks[-1]

    def calls(self, queue: Queue, handler: Handler) -> FakeWorker:
        """A worker; the test calls its `handler`."""
        worker = self.start("calls", queue)
        worker.handler = handler
        return worker

    def scsi(self) -> FakeScsi:
        """A SCSI host."""
        return FakeScsi(self)

    def vsock(self, cid: int, listener_fd: int, path: str) -> FakeVsock:
        """Connections."""
        return FakeVsock(self)

    def feed(self) -> FakeFeed:
        """Messages."""
        return FakeFeed(self)

    def balloon(self) -> FakeBalloon:
        """A balloon."""
        self.balloons.append(FakeBalloon(self))
        return self.balloons[-1]

    def nic(self, link: Any, mac: bytes, pairs: int) -> NicBackend:
        """A network card."""
        self.nics.append(FakeNic(self, mac, kernel_features=self.kernel_features))
        return self.nics[-1]

    def ethernet(self, model: str, link: Any, mac: bytes) -> FakeChip:
        """An Ethernet controller."""
        return FakeChip()

    def rng(self, queue: Queue, bytes_per_second: int) -> FakeWorker:
        """An entropy worker."""
        return self.start("rng", queue)

    def console_input(self, queue: Queue, fd: int) -> FakeWorker:
        """A console worker."""
        return self.start("input", queue)

    def console_output(self, queue: Queue, fd: int) -> FakeWorker:
        """A console worker."""
        return self.start("output", queue)

    def start(self, kind: str, queue: Queue) -> FakeWorker:
        """A worker of any kind; `ValueError` when told to refuse."""
        if self.refuse:
            raise ValueError("no memory at the rings")
        worker = FakeWorker(kind, queue, (queue.next_avail, queue.next_used))
        self.started.append(worker)
        return worker

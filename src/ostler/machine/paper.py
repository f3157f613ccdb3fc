"""Hardware that is only drawn: a board can be built on it to be looked at, not to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ostler.config import NetConfig
from ostler.devices.device import IrqLine
from ostler.devices.pci.device import ReadWrite, Space
from ostler.devices.virtio.workers import BlkBackend, Cable, Handler, NicBackend, Queue, Worker
from ostler.firmware.plan import Buffer


class PaperMemory:
    """Memory that takes no host memory: what is written is gone, what is read is zero."""

    def add_slot(self, slot: int, gpa: int, size: int) -> None:
        pass

    def remove_slot(self, slot: int) -> None:
        pass

    def discard(self, gpa: int, size: int) -> int:
        return 0

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(length)

    def write(self, gpa: int, data: Buffer) -> None:
        pass


class PaperBus:
    """A bus without anybody who accesses it."""

    def add(self, space: Space, base: int, size: int, device: ReadWrite, name: str = "") -> None:
        pass

    def add_eventfd(
        self, space: Space, base: int, size: int, fd: int, name: str = "doorbell"
    ) -> None:
        pass

    def remove(self, space: Space, base: int) -> None:
        pass


class PaperLine:
    """An interrupt input nobody listens to."""

    def set_level(self, level: bool) -> None:
        pass


class PaperRoute:
    """A message-signalled interrupt that is never sent."""

    masked = True
    pending = False

    def update(self, address: int, data: int) -> None:
        pass

    def signal(self) -> None:
        pass


class PaperTime:
    """A clock that stands at zero, and timers that never ring."""

    def now_ns(self) -> int:
        return 0

    def utc_ns(self) -> int:
        return 0

    def timer(self, callback: Callable[[], None]) -> PaperTimer:
        return PaperTimer()


class PaperTimer:
    """See `PaperTime`."""

    def arm(self, deadline_ns: int) -> None:
        pass

    def cancel(self) -> None:
        pass


class PaperHardware:
    """See the module."""

    def __init__(self) -> None:
        self.memory, self.bus, self.clock = PaperMemory(), PaperBus(), PaperTime()

    def create_irqchip(self) -> None:
        pass

    def coalesce(self, space: Space, base: int, size: int) -> bool:
        return False

    def irq_line(self, gsi: int) -> PaperLine:
        return PaperLine()

    def msi_route(self) -> PaperRoute:
        return PaperRoute()


class PaperRequests:
    """Nobody runs, so nobody asks."""

    def power_off(self) -> None:
        pass

    def reset(self, source: str) -> None:
        pass

    def panic(self) -> None:
        pass

    def exit(self, code: int) -> None:
        pass


@dataclass
class PaperBackend:
    """A disk nobody reads."""

    writeback: bool = True

    def limit(self, bytes_per_second: int, requests_per_second: int) -> None:
        pass

    def serve(self, queue: Queue) -> Worker:
        raise RuntimeError("a machine on paper does not run")


class PaperBalloon:
    """A balloon nobody fills."""

    returned_bytes = 0

    def keep_reported(self, keep: bool) -> None:
        pass

    def inflate(self, queue: Queue) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    deflate = reports = inflate

    def hints(self, queue: Queue, on_command: Callable[[int], object]) -> Worker:
        return self.inflate(queue)

    def statistics(
        self, queue: Queue, wanted_fd: int, on_stats: Callable[[list[tuple[int, int]]], object]
    ) -> Worker:
        return self.inflate(queue)


class PaperFeed:
    """Messages for nobody."""

    def put(self, message: bytes) -> bool:
        return True

    def clear(self) -> None:
        pass

    def serve(self, queue: Queue) -> Worker:
        raise RuntimeError("a machine on paper does not run")


class PaperVsock:
    """Sockets nobody calls at."""

    def reset(self) -> None:
        pass

    def receive(self, queue: Queue) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    transmit = receive


class PaperScsi:
    """A host whose units nobody uses."""

    def attach(self, target: int, lun: int, disk: Any, **how: Any) -> None:
        pass

    def detach(self, target: int, lun: int) -> bool:
        return True

    def eject(self, target: int, lun: int) -> bool:
        """There is none."""
        return False

    def insert(self, target: int, lun: int, disk: Any) -> bool:
        """There is none."""
        return False

    def pass_through(self, target: int, lun: int, path: str) -> int:
        """Nothing is opened."""
        return 0

    def set_sizes(self, cdb_bytes: int, sense_bytes: int) -> None:
        pass

    def control(self, queue: Queue) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    requests = control


@dataclass
class PaperCable:
    """A cable that is not plugged in."""

    config: NetConfig
    mac: bytes = bytes(6)
    mtu: int = 0
    up: bool = False

    @property
    def link(self) -> Cable:
        """Itself."""
        return self

    def report(self, text: str) -> None:
        """Nothing goes wrong on paper."""


class PaperNic:
    """A card without a driver."""

    announcing = False
    kernel_features = None

    def __init__(self, mac: bytes) -> None:
        self.mac = mac

    def negotiate(self, features: int) -> None:
        pass

    def resume(self, features: int) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {}

    def restore(self, settings: dict[str, Any]) -> None:
        pass

    def counters(self) -> Sequence[Sequence[int]]:
        return ((0,) * 4,) * 2

    def serve_in_kernel(self, queue: Queue, pair: int, transmit: bool) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    def receive(self, queue: Queue, pair: int) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    def transmit(self, queue: Queue, pair: int) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    def control(self, queue: Queue) -> Worker:
        raise RuntimeError("a machine on paper does not run")


class PaperWindow:
    """Registers nobody looks at."""

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class PaperChip:
    """An Ethernet controller without a driver."""

    interrupting = False

    def window(self, bar: int) -> PaperWindow:
        return PaperWindow()

    def connect(self, line: IrqLine) -> None:
        pass

    def command(self, intx_disabled: bool, master: bool) -> None:
        pass

    def set_link(self, up: bool) -> None:
        pass

    def reset(self) -> None:
        pass

    def save(self) -> dict[str, list[int]]:
        return {}

    def load(self, saved: dict[str, list[int]]) -> None:
        pass

    def counters(self) -> Sequence[Sequence[int]]:
        return ((0,) * 4,) * 2

    def stop(self) -> None:
        pass


class PaperWorkers:
    """Makes disks and network cards for devices to be built with; no queue is ever started."""

    def disk(self, disk: object, readonly: bool, serial: bytes) -> BlkBackend:
        return PaperBackend()

    def calls(self, queue: Queue, handler: Handler) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    def scsi(self) -> PaperScsi:
        return PaperScsi()

    def vsock(self, cid: int, listener_fd: int, path: str) -> PaperVsock:
        return PaperVsock()

    def feed(self) -> PaperFeed:
        return PaperFeed()

    def balloon(self) -> PaperBalloon:
        return PaperBalloon()

    def nic(self, link: Any, mac: bytes, pairs: int) -> NicBackend:
        return PaperNic(mac)

    def ethernet(self, model: str, link: Any, mac: bytes) -> PaperChip:
        return PaperChip()

    def rng(self, queue: Queue, bytes_per_second: int) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    def console_input(self, queue: Queue, fd: int) -> Worker:
        raise RuntimeError("a machine on paper does not run")

    def console_output(self, queue: Queue, fd: int) -> Worker:
        raise RuntimeError("a machine on paper does not run")

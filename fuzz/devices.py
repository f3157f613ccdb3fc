"""Drivers that write anything to devices in Python: `python -m fuzz.devices --executions 100000`.

Queues and what the engine serves have targets for cargo-fuzz; here are what Python answers:
registers of every chip, the configuration space of every virtio device, and the requests that
reach Python from a ring. An execution is an access or a request. A finding is an exception, an
answer that does not fit, an access that takes longer than `SECONDS_MAX`, or a state that cannot be
saved and loaded again.
"""

from __future__ import annotations

import argparse
import errno
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ostler.devices.device import Device
from ostler.devices.pci.device import Connection
from ostler.devices.registry import KINDS
from ostler.devices.virtio.balloon import VirtioBalloon
from ostler.devices.virtio.blk import VirtioBlk
from ostler.devices.virtio.console import CONTROL, Port, VirtioConsole
from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.input import EVENT, VirtioKeyboard
from ostler.devices.virtio.mem import BLOCK_BYTES, REQUEST, VirtioMem
from ostler.devices.virtio.net import VirtioNet
from ostler.devices.virtio.p9.server import NO_FID
from ostler.devices.virtio.p9.wire import HEADER, T, text
from ostler.devices.virtio.rng import VirtioRng
from ostler.devices.virtio.scsi import VirtioScsi
from ostler.devices.virtio.share import VirtioShare
from ostler.devices.virtio.transport import VirtioPci
from ostler.devices.virtio.vsock import VirtioVsock
from ostler.errors import HostError
from ostler.testing import FakeMachine
from ostler.testing.pci import FakeBus, FakeCable, FakeImage, FakeRoute, FakeWorkers

SECONDS_MAX = 2.0
STATE_EVERY = 500
HURTFUL = (0, 1, 2, 3, 4, 7, 8, 15, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF,
           1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
REGION_GPA, REGION_BYTES = 4 << 30, 1 << 30

Act = Callable[[random.Random], None]
"""One access or request."""


class ScarceMemory:
    """Of which the host sometimes has none left."""

    def __init__(self) -> None:
        self.mapped: set[int] = set()

    def map(self, chunk: int, gpa: int, size: int) -> None:
        """At most so many chunks."""
        if len(self.mapped) >= 5:
            raise HostError("no memory")
        assert chunk not in self.mapped
        self.mapped.add(chunk)

    def unmap(self, chunk: int) -> None:
        """What was mapped."""
        self.mapped.remove(chunk)

    def discard(self, gpa: int, size: int) -> None:
        """Of the region only."""
        assert REGION_GPA <= gpa <= gpa + size <= REGION_GPA + REGION_BYTES


def number(dice: random.Random, size: int) -> int:
    """A value for a field of `size` bytes."""
    value = dice.choice(HURTFUL) if dice.random() < 0.7 else dice.getrandbits(8 * size)
    return (value + dice.choice((0, 0, 0, 1, -1))) % (1 << 8 * size)


def registers(device: Device[Any], span: int) -> Act:
    """Loads and stores of any size, mostly within the device."""

    def act(dice: random.Random) -> None:
        size = dice.choice((1, 1, 2, 4, 4, 8))
        offset = dice.randrange(span + 8)
        if dice.random() < 0.4:
            value = device.read(offset, size)
            assert 0 <= value < 1 << 8 * size, f"{value:#x} in {size} bytes"
        else:
            device.write(offset, size, number(dice, size))

    return act


def window(device: VirtioPci) -> Act:
    """The transport by its registers in memory and by configuration space."""
    spans = (60, 60, 60, 0x4000, 256)

    def act(dice: random.Random) -> None:
        size, which = dice.choice((1, 2, 4, 8)), dice.randrange(len(spans))
        offset = dice.randrange(spans[which])
        read, write = (device.read, device.write) if which == 4 else (
            lambda offset, size: device.bar_read(0, offset, size),
            lambda offset, size, value: device.bar_write(0, offset, size, value),
        )  # fmt: skip
        if dice.random() < 0.3:
            value = read(offset, size)
            assert 0 <= value < 1 << 8 * size, f"{value:#x} at {which}:{offset:#x}, {size} bytes"
        else:
            write(offset, size, number(dice, size))

    return act


def requests(
    answer: Callable[[bytes, int], bytes | None], build: Callable[[random.Random], bytes]
) -> Act:
    """What a driver sends, whole, cut, or with bytes changed."""

    def act(dice: random.Random) -> None:
        request = bytearray(build(dice))
        for _ in range(dice.choice((0, 0, 0, 1, 2))):
            if request:
                request[dice.randrange(len(request))] = dice.getrandbits(8)
        if dice.random() < 0.1:
            del request[dice.randrange(len(request) + 1) :]
        room = dice.choice((0, 3, 7, 11, 64, 4096, 1 << 19))
        said = answer(bytes(request), room)
        assert said is None or len(said) <= room, f"{len(said)} bytes into {room}"

    return act


NAMES = (
    b"a",
    b"b",
    b"folder",
    b"link",
    b"..",
    b".",
    b"",
    b"a/b",
    b"x" * 255,
    b"y" * 300,
    b"\0",
    b"\xff\xfe",
)
FIELDS = {
    T.STATFS: "f", T.LOPEN: "fI", T.LCREATE: "fnIII", T.SYMLINK: "fnnI", T.MKNOD: "fnIIII",
    T.RENAME: "ffn", T.READLINK: "f", T.GETATTR: "fQ", T.SETATTR: "fIIIIQQQQQ",
    T.XATTRWALK: "ffn", T.XATTRCREATE: "fnQI", T.READDIR: "fQI", T.FSYNC: "fI",
    T.LOCK: "fBIQQIn", T.GETLOCK: "fBQQIn", T.LINK: "ffn", T.MKDIR: "fnII",
    T.RENAMEAT: "fnfn", T.UNLINKAT: "fnI", T.VERSION: "In", T.AUTH: "Inn", T.ATTACH: "fAnnI",
    T.FLUSH: "H", T.WALK: "ffW", T.READ: "fQI", T.WRITE: "fQD", T.CLUNK: "f", T.REMOVE: "f",
}  # fmt: skip


def message(dice: random.Random) -> bytes:
    """A 9P request; sessions begin anew now and then, as all would be refused after a while."""
    if dice.random() < 0.01:
        body = struct.pack("<I", dice.choice((8192, 4096, 1 << 20, 0))) + text(b"9P2000.L")
        return HEADER.pack(HEADER.size + len(body), T.VERSION, 1) + body
    if dice.random() < 0.05:
        body = struct.pack("<II", 0, NO_FID) + text(b"") + text(b"") + bytes(4)
        return HEADER.pack(HEADER.size + len(body), T.ATTACH, 1) + body
    kind = dice.choice(tuple(FIELDS))
    body = b"".join(_field(dice, field) for field in FIELDS[kind])
    return HEADER.pack(HEADER.size + len(body), kind, dice.getrandbits(16)) + body


def _field(dice: random.Random, field: str) -> bytes:
    match field:
        case "f":
            return struct.pack("<I", dice.choice((0, 0, 1, 2, 3, 4, 5, 6, 7, NO_FID)))
        case "A":
            return struct.pack("<I", NO_FID)
        case "n":
            return text(dice.choice(NAMES))
        case "W":
            names = [text(dice.choice(NAMES)) for _ in range(dice.choice((0, 1, 1, 2, 3, 16, 17)))]
            return struct.pack("<H", len(names)) + b"".join(names)
        case "D":
            count = dice.randrange(64)
            return struct.pack("<I", dice.choice((count, count, 1 << 31))) + bytes(count)
    size = struct.calcsize("<" + field)
    small = dice.random() < 0.6
    return (dice.randrange(64) if small else number(dice, size)).to_bytes(size, "little")


def memory_request(dice: random.Random) -> bytes:
    """Blocks of the region, and such as are not."""
    blocks = REGION_BYTES // BLOCK_BYTES
    gpa = REGION_GPA + dice.randrange(-1, blocks + 1) * BLOCK_BYTES + dice.choice((0, 0, 0, 1))
    return REQUEST.pack(
        dice.choice((0, 0, 1, 1, 2, 3, 3, 4, 0xFFFF)), gpa, dice.choice((0, 1, 2, 64, 65, 0xFFFF))
    )


def control_message(dice: random.Random) -> bytes:
    """Ports that are there and not, events that are there and not."""
    return CONTROL.pack(
        dice.choice((0, 1, 2, 3, 31, 0xFFFF_FFFF)),
        dice.randrange(9),
        dice.choice((0, 1, 2, 0xFFFF)),
    )


def status_event(dice: random.Random) -> bytes:
    """Lamps, and whatever else."""
    return EVENT.pack(dice.choice((0x11, 0x11, 0, 1, 0xFFFF)), dice.randrange(4), number(dice, 4))


def _mem(workers: FakeWorkers) -> VirtioMem:
    device = VirtioMem(workers, ScarceMemory(), REGION_GPA, REGION_BYTES)
    device.state.requested_bytes = REGION_BYTES
    return device


VIRTIO: dict[str, Callable[[FakeWorkers, Path], VirtioDevice[Any]]] = {
    "blk": lambda workers, _: VirtioBlk(FakeImage(), workers, queues=4),
    "rng": lambda workers, _: VirtioRng(workers),
    "balloon": lambda workers, _: VirtioBalloon(workers, 1 << 30),
    "input": lambda workers, _: VirtioKeyboard(workers),
    "scsi": lambda workers, _: VirtioScsi(workers),
    "vsock": lambda workers, _: VirtioVsock(workers, 3, -1, "vsock"),
    "console": lambda workers, _: VirtioConsole((0, 1), workers, [Port("agent", 0, 1)]),
    "mem": lambda workers, _: _mem(workers),
    "net": lambda workers, _: VirtioNet(FakeCable(), workers, bytes(6), pairs=4, hash_report=True),
    "9p": lambda workers, root: VirtioShare(workers, root, "tag"),
}
REQUESTS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "9p": ("_server.answer", message),
    "mem": ("answer", memory_request),
    "console": ("_on_control", control_message),
    "input": ("_on_status", status_event),
}
CHIPS = {kind.device.name: kind for kind in KINDS}
TARGETS = (
    *(f"virtio-{name}" for name in VIRTIO),
    *(f"virtio-{name}-requests" for name in REQUESTS),
    *CHIPS,
)


def subject(name: str, root: Path, stack: ExitStack) -> tuple[Device[Any], Act]:
    """The device of a target, and what is done to it."""
    if name in CHIPS:
        kind = CHIPS[name]
        chip = kind.wire(FakeMachine())
        return chip, registers(chip, kind.span)
    virtio, _, is_requests = name.removeprefix("virtio-").partition("-")
    inner = VIRTIO[virtio](FakeWorkers(), root)
    if is_requests:
        stack.callback(inner.close)
        path, build = REQUESTS[virtio]
        answer: Any = inner
        for part in path.split("."):
            answer = getattr(answer, part)
        return inner, requests(answer, build)
    transport = stack.enter_context(closing(VirtioPci(inner)))
    transport.connect(Connection(FakeBus(), FakeMachine().irq_line(16), FakeRoute))
    return transport, window(transport)


def run(name: str, executions: int, seed: int) -> Iterator[str]:
    """Execute one target; what was found, each as one line."""
    dice = random.Random(f"{name} {seed}")
    with TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder, "shared")
        (root / "folder").mkdir(parents=True)
        (root / "a").write_bytes(bytes(5000))
        (root / "link").symlink_to("../secret")
        Path(folder, "secret").write_text("not shared")
        device, act = subject(name, root, stack)
        for execution in range(executions):
            began = time.thread_time()
            try:
                act(dice)
                if execution % STATE_EVERY == 0:
                    device.load(device.save())
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    yield f"execution {execution}: {type(error).__name__}: {error}"
            except Exception as error:
                yield f"execution {execution}: {type(error).__name__}: {error}"
            if (took := time.thread_time() - began) > SECONDS_MAX:
                yield f"execution {execution}: took {took:.1f} s"
        if (
            Path(folder, "secret").read_text() != "not shared"
            or len(list(Path(folder).iterdir())) != 2
        ):
            yield "it got out of its directory"


def main() -> int:
    """Fuzz, and print."""
    parser = argparse.ArgumentParser(prog="fuzz.devices", description=__doc__)
    parser.add_argument("--executions", type=int, default=20_000, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, action="append")
    options = parser.parse_args()
    failed = False
    for name in options.target or TARGETS:
        began = time.monotonic()
        found = list(run(name, options.executions, options.seed))
        for line in found[:20]:
            print(f"{name}: {line}")
        failed |= bool(found)
        print(f"{name}: {options.executions} executions in {time.monotonic() - began:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())

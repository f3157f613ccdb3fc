"""virtio-input (virtio 1.2, section 5.8): a keyboard, or a tablet with an absolute pointer.

Events are those of Linux's evdev; codes are in its `input-event-codes.h`. What the driver sends
back (the lamps of a keyboard) is kept in `lamps`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.errors import StateError
from ostler.state import State

EVENT_QUEUE, STATUS_QUEUE = 0, 1
QUEUE_SIZE = 64
EVENT = struct.Struct("<HHI")

SELECT_OFFSET, SUBSELECT_OFFSET = 0, 1
CONFIG_DATA_BYTES = 128
ID_NAME, ID_SERIAL, ID_DEVIDS, PROP_BITS, EV_BITS, ABS_INFO = 0x01, 0x02, 0x03, 0x10, 0x11, 0x12
BUS_VIRTUAL, VENDOR, VERSION = 0x06, 0x1AF4, 1

EV_SYN, EV_KEY, EV_ABS, EV_LED, EV_REP = 0x00, 0x01, 0x03, 0x11, 0x14
SYN_REPORT = 0
ABS_X, ABS_Y = 0, 1
BTN_LEFT, BTN_RIGHT, BTN_MIDDLE = 0x110, 0x111, 0x112
KEYBOARD_KEYS = range(1, 249)
KEYBOARD_LAMPS = range(3)
TABLET_MAX = 0x7FFF


@dataclass(slots=True)
class InputState(State):
    """What the driver asks the configuration space for."""

    select: int = 0
    subselect: int = 0

    def validate(self) -> None:
        """Raise `StateError` for what a byte cannot hold."""
        if not (0 <= self.select < 256 and 0 <= self.subselect < 256):
            raise StateError("virtio-input: a selector out of range")


class VirtioInput(VirtioDevice[InputState]):
    """Base of the two: `codes` has for each type of event the codes that can come."""

    abstract = True
    State = InputState
    device_id = 18
    pci_class = 0x098000
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)

    label: str
    product: int
    codes: dict[int, Iterable[int]]

    def __init__(self, workers: Workers) -> None:
        self.state = InputState()
        self.lamps: dict[int, bool] = {}
        self._workers = workers
        self._events = workers.feed()

    def send(self, *events: tuple[int, int, int]) -> None:
        """Report (type, code, value) events as one: the guest sees all of them or none yet."""
        for event in (*events, (EV_SYN, SYN_REPORT, 0)):
            self._events.put(EVENT.pack(*event))

    def key(self, code: int, down: bool) -> None:
        """A key or button goes down or up."""
        self.send((EV_KEY, code, int(down)))

    def config(self) -> bytes:
        """Two selectors, the size of the answer, the answer."""
        answer = self._answer(self.state.select, self.state.subselect)
        header = bytes([self.state.select, self.state.subselect, len(answer)]) + bytes(5)
        return header + answer.ljust(CONFIG_DATA_BYTES, b"\0")

    def _answer(self, select: int, subselect: int) -> bytes:
        if select == EV_BITS:
            return _bits(self.codes.get(subselect, ()))
        if select == ABS_INFO and subselect in self.codes.get(EV_ABS, ()):
            return struct.pack("<5I", 0, TABLET_MAX, 0, 0, 0)
        return {
            ID_NAME: self.label.encode(),
            ID_SERIAL: b"ostler",
            ID_DEVIDS: struct.pack("<4H", BUS_VIRTUAL, VENDOR, self.product, VERSION),
        }.get(select, b"")

    def write(self, offset: int, size: int, value: int) -> None:
        """The driver selects what it wants to know."""
        if size == 1 and offset == SELECT_OFFSET:
            self.state.select = value
        elif size == 1 and offset == SUBSELECT_OFFSET:
            self.state.subselect = value

    def replace(self, state: InputState) -> None:
        """Take `state`; keys of another time are forgotten."""
        self.state = state
        self._events.clear()

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve one queue."""
        if queue.index == EVENT_QUEUE:
            return self._events.serve(queue)
        return self._workers.calls(queue, self._on_status)

    def _on_status(self, request: bytes, room: int) -> bytes:
        if len(request) >= EVENT.size:
            kind, code, value = EVENT.unpack_from(request)
            if kind == EV_LED and code in KEYBOARD_LAMPS:
                self.lamps[code] = bool(value)
        return b""


class VirtioKeyboard(VirtioInput):
    """A keyboard of 248 keys and three lamps."""

    name = "virtio-keyboard"
    label, product = "Ostler virtio keyboard", 1
    codes = {EV_KEY: KEYBOARD_KEYS, EV_LED: KEYBOARD_LAMPS, EV_REP: (0,)}  # noqa: RUF012

    def press(self, *codes: int) -> None:
        """Press keys one after another, holding each, then let all go: a chord."""
        for code in codes:
            self.key(code, True)
        for code in reversed(codes):
            self.key(code, False)


class VirtioTablet(VirtioInput):
    """An absolute pointer with three buttons."""

    name = "virtio-tablet"
    label, product = "Ostler virtio tablet", 3
    codes = {EV_KEY: (BTN_LEFT, BTN_RIGHT, BTN_MIDDLE), EV_ABS: (ABS_X, ABS_Y)}  # noqa: RUF012

    def move(self, x: float, y: float) -> None:
        """Point at (x, y), each from 0 (left, top) to 1 (right, bottom)."""
        at = [round(min(max(part, 0.0), 1.0) * TABLET_MAX) for part in (x, y)]
        self.send((EV_ABS, ABS_X, at[0]), (EV_ABS, ABS_Y, at[1]))


def _bits(codes: Iterable[int]) -> bytes:
    """A bitmap as short as it can be."""
    bits = sum(1 << code for code in codes)
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")

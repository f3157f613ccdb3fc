"""The control messages of a virtio console with named ports, and what its host's ends hear."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from ostler.devices.virtio.console import (
    CONSOLE_PORT,
    DEVICE_READY,
    F_MULTIPORT,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    RESIZE,
    ConsoleState,
    Port,
    VirtioConsole,
)
from ostler.devices.virtio.workers import Queue
from ostler.errors import StateError
from ostler.testing.pci import FakeWorkers

Message = tuple[int, int, int, bytes]
CONSOLE_FDS, AGENT_FDS, LOG_FDS = (10, 11), (12, 13), (14, 15)


class Driver:
    """A device with a console and two ports, and what its driver sends and sees."""

    def __init__(self, fds: tuple[int, int] | None = CONSOLE_FDS) -> None:
        self.heard: list[tuple[str, bool]] = []
        self.workers = FakeWorkers()
        ports = [
            Port("agent", *AGENT_FDS, on_open=self.hears("agent")),
            Port("log", *LOG_FDS, connected=False, on_open=self.hears("log")),
        ]
        self.device = VirtioConsole(fds, self.workers, ports)

    def hears(self, name: str) -> Callable[[bool], None]:
        return lambda is_open: self.heard.append((name, is_open))

    def says(self, *messages: tuple[int, int, int]) -> list[Message]:
        """Send control messages; what the device says to them."""
        for message in messages:
            assert self.device._on_control(struct.pack("<IHH", *message), 0) == b""
        return self.sees()

    def sees(self) -> list[Message]:
        feed: list[bytes] = self.device._messages.messages  # type: ignore[attr-defined]  # the fake's
        seen = [(*struct.unpack("<IHH", message[:8]), message[8:]) for message in feed]
        feed.clear()
        return seen


def test_console_without_names_has_no_control_queues() -> None:
    device = VirtioConsole(CONSOLE_FDS, FakeWorkers())
    assert not device.features & F_MULTIPORT
    assert len(device.queue_sizes) == 2
    device = Driver().device
    assert device.features & F_MULTIPORT
    assert (len(device.queue_sizes), device.config()[4:8]) == (8, struct.pack("<I", 3))


def test_console_introduces_its_ports_when_the_driver_is_ready() -> None:
    driver = Driver()
    driver.device.resize(132, 50)
    assert driver.sees() == []
    assert driver.says((0, DEVICE_READY, 1)) == [(number, PORT_ADD, 1, b"") for number in range(3)]
    assert driver.says((0, PORT_READY, 1)) == [
        (0, CONSOLE_PORT, 1, b""),
        (0, RESIZE, 0, struct.pack("<HH", 132, 50)),
    ]
    assert driver.says((1, PORT_READY, 1), (2, PORT_READY, 1)) == [
        (1, PORT_NAME, 1, b"agent"),
        (1, PORT_OPEN, 1, b""),
        (2, PORT_NAME, 1, b"log"),
        (2, PORT_OPEN, 0, b""),
    ]
    driver.device.resize(80, 25)
    assert driver.sees() == [(0, RESIZE, 0, struct.pack("<HH", 80, 25))]


def test_console_of_ports_alone_has_no_port_zero() -> None:
    driver = Driver(fds=None)
    driver.device.resize(132, 50)
    assert [message[0] for message in driver.says((0, DEVICE_READY, 1))] == [1, 2]
    assert driver.says((0, PORT_READY, 1)) == []
    driver.device.resize(80, 25)
    assert driver.sees() == []


def test_port_opened_and_closed_is_told_once_each_and_ends_with_a_reset() -> None:
    driver = Driver()
    driver.says((1, PORT_OPEN, 1), (1, PORT_OPEN, 1), (2, PORT_OPEN, 1), (2, PORT_OPEN, 0))
    assert driver.heard == [("agent", True), ("log", True), ("log", False)]
    assert driver.device.is_open("agent")
    assert not driver.device.is_open("log")
    saved = driver.device.save()
    driver.device.reset()
    assert driver.heard[3:] == [("agent", False)]
    driver.device.load(saved)
    assert driver.heard[4:] == [("agent", True)]
    with pytest.raises(StateError):
        driver.device.load({**saved, "open_ports": 1 << 40})


def test_port_whose_host_comes_and_goes_is_told_to_a_ready_driver_only() -> None:
    driver = Driver()
    log = driver.device.ports[2]
    log.connect(True)
    assert driver.sees() == []
    driver.says((0, DEVICE_READY, 1))
    log.connect(False)
    log.connect(True)
    assert driver.sees() == [(2, PORT_OPEN, 0, b""), (2, PORT_OPEN, 1, b"")]


@pytest.mark.parametrize("request_bytes", [b"", b"\x01\0\0\0\x06\0\x01", bytes([0xFF] * 8)])
def test_control_message_that_is_none_changes_nothing(request_bytes: bytes) -> None:
    driver = Driver()
    assert driver.device._on_control(request_bytes, 64) == b""
    assert (
        driver.says(*((number, event, 1) for number in (3, 1 << 31) for event in range(1, 9))) == []
    )
    assert driver.device.state == ConsoleState()
    assert driver.heard == []


def test_queue_pairs_belong_to_port_zero_control_and_the_ports() -> None:
    def kinds(driver: Driver) -> list[str]:
        queues = range(len(driver.device.queue_sizes))
        for index in queues:
            driver.device.start(F_MULTIPORT, queue(index))
        return [worker.kind for worker in driver.workers.started]

    ports = ["input", "output"] * 2
    assert kinds(Driver()) == ["input", "output", "feed", "calls", *ports]
    assert kinds(Driver(fds=None)) == ["feed", "calls", "feed", "calls", *ports]


def queue(index: int) -> Queue:
    return Queue(index, 2, 0, 0, 0, 0, 0, False, False, False, -1, None, lambda: None)

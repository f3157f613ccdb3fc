"""Queues that Python answers, served by the engine's workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from virtio_guest import DATA, PATIENCE_S, WRITE, Guest

from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Handler, Queue, Worker
from ostler.state import State


@dataclass(slots=True)
class NoState(State):
    """Nothing."""


class Oracle(VirtioDevice[NoState]):
    """Answers on queue 0 and speaks unasked on queue 1."""

    name, State = "oracle", NoState
    device_id, pci_class = 42, 0xFF0000
    queue_sizes = (16, 16)

    def __init__(self, guest: Guest, answer: Handler) -> None:
        self.state = NoState()
        self.workers, self.answer, self.feed = guest.workers, answer, guest.workers.feed()

    def start(self, features: int, queue: Queue) -> Worker:
        if queue.index == 0:
            return self.workers.calls(queue, self.answer)
        return self.feed.serve(queue)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.transport.close()


def test_call_gets_the_request_and_its_answer_goes_into_the_room(guest: Guest) -> None:
    guest.plug(Oracle(guest, lambda request, room: request[::-1] + bytes([room]) * 9))
    guest.drive()
    guest.vm.memory.write(DATA, b"abc")
    guest.offer((DATA, 3, 0), (DATA + 0x100, 6, WRITE))
    assert guest.await_interrupt() == (0, 6)
    assert guest.vm.memory.read(DATA + 0x100, 6) == b"cba\x06\x06\x06"


def test_call_that_raises_is_reported_and_the_device_needs_a_reset(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda news: reported.append(str(news.exc_value)))

    def defect(request: bytes, room: int) -> bytes:
        raise RuntimeError("a defect")

    guest.plug(Oracle(guest, defect))
    guest.drive()
    guest.offer((DATA, 3, 0))
    assert guest.line.rose.wait(PATIENCE_S)
    assert guest.get(20, 1) & 64
    assert reported == ["a defect"]


def test_feed_fills_buffers_as_they_come(guest: Guest) -> None:
    oracle = Oracle(guest, lambda request, room: b"")
    guest.plug(oracle)
    guest.drive(queue=1)
    oracle.feed.put(b"first")
    oracle.feed.put(b"second")
    for said in (b"first", b"second"):
        guest.offer((DATA, 64, WRITE))
        assert guest.await_interrupt() == (0, len(said))
        assert guest.vm.memory.read(DATA, len(said)) == said
    guest.offer((DATA, 64, WRITE))
    oracle.feed.put(b"third")
    assert guest.await_interrupt() == (0, 5)

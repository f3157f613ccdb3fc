import threading
import time
from collections.abc import Iterator

import pytest

from ostler.control.timers import TimerThread

MS = 1_000_000


class HostClock:
    def now_ns(self) -> int:
        return time.monotonic_ns()


@pytest.fixture
def timers() -> Iterator[TimerThread]:
    thread = TimerThread(HostClock())
    yield thread
    thread.close()


def test_timer_rings_once_at_its_time(timers: TimerThread) -> None:
    rang = threading.Event()
    timer = timers.timer(rang.set)
    timers.start()
    due = time.monotonic_ns() + 5 * MS
    timer.arm(due)
    assert rang.wait(5)
    assert time.monotonic_ns() >= due


def test_timer_armed_again_forgets_the_first_deadline(timers: TimerThread) -> None:
    rings: list[int] = []
    done = threading.Event()
    timer = timers.timer(lambda: rings.append(time.monotonic_ns()))
    last = timers.timer(done.set)
    timers.start()
    due = time.monotonic_ns() + 10 * MS
    timer.arm(due - 5 * MS)
    timer.arm(due)
    last.arm(due + MS)
    assert done.wait(5)
    assert len(rings) == 1
    assert rings[0] >= due


def test_timer_cancelled_does_not_ring(timers: TimerThread) -> None:
    rang, done = threading.Event(), threading.Event()
    timer, last = timers.timer(rang.set), timers.timer(done.set)
    timers.start()
    timer.arm(time.monotonic_ns() + MS)
    timer.cancel()
    last.arm(time.monotonic_ns() + 2 * MS)
    assert done.wait(5)
    assert not rang.is_set()


def test_timers_paused_ring_after_resume(timers: TimerThread) -> None:
    rang = threading.Event()
    timer = timers.timer(rang.set)
    timers.start()
    timers.pause()
    timer.arm(0)
    assert not rang.wait(0.01)
    timers.resume()
    assert rang.wait(5)


def test_timer_may_be_armed_by_its_own_call_back(timers: TimerThread) -> None:
    rings: list[int] = []
    done = threading.Event()

    def ring() -> None:
        rings.append(0)
        timer.arm(0) if len(rings) < 3 else done.set()

    timer = timers.timer(ring)
    timers.start()
    timer.arm(0)
    assert done.wait(5)
    assert len(rings) == 3

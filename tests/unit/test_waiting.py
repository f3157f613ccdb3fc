"""Waits end by a signal that does not interrupt them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from ostler.block.jobs.job import Job
from ostler.waiting import wait_in_slices

PATIENCE_S = 60


class Signalled(BaseException):
    """The handler ran."""


@pytest.fixture
def signalled() -> Iterator[None]:
    """SIGUSR1 is taken by another thread while this one waits, which wakes nobody."""

    def handle(number: int, frame: object) -> None:
        raise Signalled

    def take() -> None:
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    threading.Thread(target=take).start()
    yield
    signal.signal(signal.SIGUSR1, before)


def of_a_job(over: threading.Event) -> Callable[[], object]:
    def work(_: Job[bool]) -> bool:
        return over.wait(PATIENCE_S)

    return Job("test", 0, work).wait


def of_an_event(over: threading.Event) -> Callable[[], object]:
    return partial(wait_in_slices, over.wait)


@pytest.mark.parametrize("kind", [of_a_job, of_an_event])
def test_handler_runs_while_something_is_waited_for(
    signalled: None, kind: Callable[[threading.Event], Callable[[], object]]
) -> None:
    over = threading.Event()
    end = threading.Timer(PATIENCE_S, over.set)
    end.start()
    try:
        with pytest.raises(Signalled):
            kind(over)()
        assert not over.is_set(), "it ran after the wait"
    finally:
        over.set()
        end.cancel()


def test_what_does_not_come_in_time_is_false() -> None:
    assert not wait_in_slices(threading.Event().wait, 0.01)
    over = threading.Event()
    over.set()
    assert wait_in_slices(over.wait, 0)

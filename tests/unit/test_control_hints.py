"""What a user is told of a guest that says nothing, or has panicked and stays so."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from ostler.config import MachineConfig
from ostler.control.hints import Hints
from ostler.control.outcome import Ending

LONG_S = 3600.0
WAIT_S = 60.0
PANIC = b"[    1.0] Kernel panic - not syncing: no init\r\n"
SILENT = "the guest has printed nothing; Linux prints here when it is given --append console=ttyS0"


class Told:
    """Hints about a guest with the command line `append`; `lines` are those that were given."""

    def __init__(
        self, append: str = "", *, interactive: bool = True, at_once: bool = False
    ) -> None:
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        config = MachineConfig(kernel=Path("vmlinuz"), append=append)
        wait_s = 0.0 if at_once else LONG_S
        self.hints = Hints(
            config, self.lines.put, interactive=interactive, silence_s=wait_s, panic_s=wait_s
        )

    def next(self) -> str:
        return self.lines.get(timeout=WAIT_S)


def test_silent_guest_on_a_terminal_is_told_about_while_it_runs_and_once() -> None:
    told = Told(at_once=True)
    with told.hints:
        told.hints.start()
        assert told.next() == SILENT.replace("nothing;", "nothing so far;")
    told.hints.ended(Ending.STOPPED)
    assert told.lines.empty()


@pytest.mark.parametrize("ending", [Ending.STOPPED, Ending.POWER_OFF, Ending.PANIC])
def test_silent_guest_without_a_terminal_is_told_about_at_its_end(ending: Ending) -> None:
    told = Told(interactive=False, at_once=True)
    with told.hints:
        told.hints.start()
    assert told.lines.empty()
    told.hints.ended(ending)
    assert told.next() == SILENT


@pytest.mark.parametrize(
    ("append", "output", "ending"),
    [
        ("console=ttyS0 quiet", b"", Ending.STOPPED),
        ("earlyprintk=serial", b"", Ending.STOPPED),
        ("", b"x", Ending.STOPPED),
        ("", b"", Ending.DEBUG_EXIT),
    ],
)
def test_guest_that_speaks_or_was_told_where_to_is_not_told_about(
    append: str, output: bytes, ending: Ending
) -> None:
    told = Told(append)
    with told.hints:
        told.hints.start()
        if output:
            told.hints.saw(output)
    told.hints.ended(ending)
    assert told.lines.empty()


def test_panic_that_stays_is_told_about_once_wherever_the_output_is_cut() -> None:
    told = Told("console=ttyS0", at_once=True)
    with told.hints:
        for at in range(len(PANIC)):
            told.hints.saw(PANIC[at : at + 1])
        assert "the guest's kernel has panicked and stays so; Ctrl-A x or kill" in told.next()
        told.hints.saw(PANIC)
    assert told.lines.empty()


@pytest.mark.parametrize("append", ["panic=-1", "console=ttyS0 panic=5"])
def test_panic_that_ends_by_itself_is_not_told_about(append: str) -> None:
    told = Told(append, at_once=True)
    with told.hints:
        told.hints.saw(PANIC)
    assert told.lines.empty()


def test_panic_of_a_guest_that_ends_soon_after_is_not_told_about() -> None:
    told = Told("console=ttyS0")
    with told.hints:
        told.hints.saw(PANIC)
    told.hints.saw(PANIC)
    assert told.lines.empty()

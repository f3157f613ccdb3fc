"""What somebody who sits before a guest is told when that says nothing, or has panicked and stays.

Both look like a hang and have a cure on the kernel's command line, which the guest cannot tell.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from typing import Self

from ostler.config import MachineConfig
from ostler.control.outcome import Ending

SILENCE_S = 5.0
# A guest that reports its panic, or resets by itself, has ended by then.
PANIC_S = 2.0
PANIC = b"Kernel panic - not syncing"
HAS_CONSOLE = re.compile(r"\b(console|earlyprintk|earlycon)\b")
LEAVES_PANIC = re.compile(r"\bpanic=-?[1-9]")
GIVE_CONSOLE = "Linux prints here when it is given --append console=ttyS0"


class Hints:
    """Watches what the guest prints while the `with` block lasts; each hint is given to `report`
    once.

    `interactive`: somebody waits at a terminal, and is told of silence while it lasts.
    """

    def __init__(
        self,
        config: MachineConfig,
        report: Callable[[str], None],
        *,
        interactive: bool,
        silence_s: float = SILENCE_S,
        panic_s: float = PANIC_S,
    ) -> None:
        self._report, self._interactive = report, interactive
        self._silence_s, self._panic_s = silence_s, panic_s
        self._lock = threading.Lock()  # guards all below: two consoles may speak at once
        self._may_be_silent = HAS_CONSOLE.search(config.append) is not None
        self._may_panic = LEAVES_PANIC.search(config.append) is not None
        self._tail = b""
        self._timers: list[threading.Timer] = []
        self._over = False

    def start(self) -> None:
        """The guest runs."""
        if self._interactive:
            self._after(self._silence_s, self._on_silence)

    def saw(self, data: bytes) -> None:
        """The guest has printed `data`."""
        with self._lock:
            self._may_be_silent = True
            text = self._tail + data
            self._tail = text[1 - len(PANIC) :]
            panicked = PANIC in text and not self._may_panic
            self._may_panic |= panicked
        if panicked:
            self._after(self._panic_s, self._on_panic)

    def ended(self, ending: Ending) -> None:
        """The guest has ended, and all that it printed has been seen."""
        # By a debug exit ends a test program, not a system that lacks a console.
        if ending is not Ending.DEBUG_EXIT:
            self._on_silence("the guest has printed nothing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over, timers = True, self._timers
        for timer in timers:
            timer.cancel()
            timer.join()

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, act)
        timer.daemon = True
        with self._lock:
            if self._over:
                return
            self._timers.append(timer)
            timer.start()

    def _on_silence(self, said: str = "the guest has printed nothing so far") -> None:
        with self._lock:
            due, self._may_be_silent = not self._may_be_silent, True
        if due:
            self._report(f"{said}; {GIVE_CONSOLE}")

    def _on_panic(self) -> None:
        self._report(
            f"the guest's kernel has panicked and stays so; Ctrl-A x or kill {os.getpid()} ends it,"
            " --append panic=-1 does so at once"
        )

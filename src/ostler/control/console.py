"""The guest's serial port, seen from the host: what it printed, and what it is told.

Thread-safe. The guest's side (`transmit`, `receive`) is called by the serial device on vCPU
threads; everything else is for whoever runs the machine.
"""

from __future__ import annotations

import os
import re
import shlex
import threading
import time
from collections.abc import Callable

from ostler.errors import ConfigError, GuestError, WaitTimeout

HISTORY_BYTES = 4 << 20
TRIM_BYTES = 1 << 20
# How far a guest may be ahead of who copies its output; then it has to wait.
LAG_BYTES = 1 << 20
INPUT_BYTES = 64 << 10
# Who waits for output looks at most this often: the guest prints byte by byte.
LOOK_INTERVAL_S = 0.002
# How what `run` types begins; what is before it is all that the guest has to say for itself.
TYPED = "printf '%s%s\\n' "
PANIC = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")


class SerialConsole:
    """Both directions of the port. `history` keeps the last megabytes the guest printed.

    `idle` is why nothing can be waited for before `begin`.
    """

    def __init__(self, idle: str | None = None) -> None:
        self._idle = idle
        self._changed = threading.Condition()
        self._history = bytearray()
        self._dropped = 0  # bytes the guest printed before what `_history` begins with
        self._seen = 0  # absolute position up to which `wait_for` has consumed
        self._waiting = 0
        self._input = bytearray()
        self._ended: str | None = None
        self._on_input: Callable[[], None] | None = None
        self._copied: int | None = None  # position of the one who copies, where there is one

    # -- the guest's side -------------------------------------------------------------------

    def transmit(self, data: bytes) -> None:
        with self._changed:
            self._history += data
            if len(self._history) > HISTORY_BYTES + TRIM_BYTES:
                self._dropped += len(self._history) - HISTORY_BYTES
                del self._history[:-HISTORY_BYTES]
            if self._waiting:
                self._changed.notify_all()
            if self._lags():
                self._wait(lambda: not self._lags())

    def receive(self, limit: int) -> bytes:
        with self._changed:
            data = bytes(self._input[:limit])
            del self._input[:limit]
            if data and self._waiting:
                self._changed.notify_all()
            return data

    def take_back(self, data: bytes) -> None:
        with self._changed:
            self._input[:0] = data

    def wait_for_input(self) -> bool:
        """Wait until there is something to `receive`; false when the machine stands still."""
        with self._changed:
            self._wait(lambda: bool(self._input) or self._on_input is None)
            return bool(self._input)

    # -- the machine's side -----------------------------------------------------------------

    def begin(self) -> None:
        """The machine is started: what it prints can be waited for."""
        with self._changed:
            self._idle = None

    def connect(self, on_input: Callable[[], None]) -> None:
        """The machine runs: have `on_input` called when there is something to receive."""
        with self._changed:
            self._on_input = on_input
        on_input()

    def disconnect(self) -> None:
        """The machine stands still; nobody may wait for it, and it may not wait for anybody."""
        with self._changed:
            self._on_input = None
            self._changed.notify_all()

    def end(self, why: str) -> None:
        """The guest prints no more: those who wait for it are told `why`."""
        with self._changed:
            self._ended = why
            self._changed.notify_all()

    def position(self) -> int:
        """How many bytes the guest has printed so far."""
        with self._changed:
            return self._end()

    def find_panic(self, since: int) -> str | None:
        """The reason of a Linux kernel panic printed after position `since`."""
        found = PANIC.search(self._since(since))
        return found[1].decode(errors="replace") if found else None

    def read_since(self, position: int, timeout: float | None = None) -> tuple[bytes, int]:
        """What the guest printed after `position`, and the position after it.

        Waits up to `timeout` seconds for the first byte; nothing when none came or none will.
        """
        with self._changed:
            self._wait(lambda: self._end() > position or self._ended is not None, timeout)
            return self._since_locked(position), self._end()

    def copied(self, position: int | None) -> None:
        """Whoever copies the output elsewhere has done so up to `position`; `None` ends that.

        The guest waits for it when it is a megabyte ahead.
        """
        with self._changed:
            self._copied = position
            self._changed.notify_all()

    # -- for people and programs ------------------------------------------------------------

    @property
    def history(self) -> str:
        """What the guest printed, as far as it is kept."""
        return self._since(0).decode(errors="replace")

    def write(self, text: str | bytes) -> None:
        """Type `text` into the guest, as fast as it takes it; `GuestError` when it has ended."""
        with self._changed:
            if self._ended is not None:
                raise GuestError(f"{self._ended} and takes no input any more; start another VM")
            self._input += text.encode() if isinstance(text, str) else text
            on_input = self._on_input
            if self._waiting:
                self._changed.notify_all()
        if on_input is not None:
            on_input()

    def wait_for_room(self) -> None:
        """Return when little of what was written still waits for the guest to take it."""
        with self._changed:
            self._wait(lambda: len(self._input) < INPUT_BYTES or self._ended is not None)

    def wait_for(self, pattern: str | re.Pattern[str], timeout: float = 60) -> str:
        """Wait until the guest prints `pattern`; return what it printed up to and including it.

        A plain string is looked for as it is. Each call goes on where the last one ended.
        `WaitTimeout` after `timeout` seconds, `GuestError` when the guest ends before,
        `ConfigError` when it has not been started.
        """
        return self._await(pattern, timeout, "print", _name(pattern))

    def _await(self, pattern: str | re.Pattern[str], timeout: float, verb: str, what: str) -> str:
        """`wait_for`; what does not happen is called `verb` and `what`."""
        search = _bytes_pattern(pattern)
        deadline = time.monotonic() + timeout
        start = self._seen
        while True:
            text, position, ended = self._snapshot(start)
            found = search.search(text)
            if found:
                return self._consume(start, found.end())
            if ended is not None:
                raise GuestError(f"{ended}, before it {verb}ed {what}")
            self._refuse_idle()
            left = deadline - time.monotonic()
            if left <= 0:
                own = text if verb == "print" else text.partition(TYPED.encode())[0]
                last = own[-200:].decode(errors="replace")
                raise WaitTimeout(
                    f"the guest did not {verb} {what} within {timeout} s; its last words: {last!r}"
                )
            self.read_since(position, left)
            time.sleep(min(LOOK_INTERVAL_S, left))

    def run(self, command: str, timeout: float = 60, *, check: bool = True) -> str:
        """Run a shell command at a shell's prompt in the guest; return what it printed.

        `GuestError` when it ends with another status than 0, unless `check` is false.
        """
        self._refuse_idle()
        mark = os.urandom(4).hex()
        # The shell echoes what is typed. Marks are typed in two halves, so the echo holds none.
        begin, end = f"<{mark}:begin>", f"<{mark}:end:"
        self.write(
            f"{TYPED}'<{mark}' ':begin>'; eval {shlex.quote(command)};"
            f" printf '%s%s%s>\\n' '<{mark}' ':end:' \"$?\"\n"
        )
        self._await(begin, timeout, "start", repr(command))
        # A message of the kernel may follow at once, in place of the end of the line.
        ending = re.compile(re.escape(end) + r"\d+>(?:\r?\n|(?=[^\r\n]))")
        printed = self._await(ending, timeout, "finish", repr(command))
        output, _, status = printed.replace("\r\n", "\n").rpartition(end)
        output, status = output.removeprefix("\n"), status.rstrip("\n").removesuffix(">")
        if check and status != "0":
            raise GuestError(f"{command!r} ended with status {status}: {output[-200:]!r}")
        return output

    # -- inside -----------------------------------------------------------------------------

    def _refuse_idle(self) -> None:
        if self._idle is not None:
            raise ConfigError(self._idle)

    def _snapshot(self, start: int) -> tuple[bytes, int, str | None]:
        with self._changed:
            return self._since_locked(start), self._end(), self._ended

    def _since(self, position: int) -> bytes:
        with self._changed:
            return self._since_locked(position)

    def _since_locked(self, position: int) -> bytes:
        return bytes(self._history[max(position - self._dropped, 0) :])

    def _end(self) -> int:
        return self._dropped + len(self._history)

    def _lags(self) -> bool:
        running = self._on_input is not None
        return running and self._copied is not None and self._end() - self._copied > LAG_BYTES

    def _wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        self._waiting += 1
        try:
            self._changed.wait_for(ready, timeout)
        finally:
            self._waiting -= 1

    def _consume(self, start: int, length: int) -> str:
        with self._changed:
            base = max(start, self._dropped)
            self._seen = base + length
            text = self._history[base - self._dropped : base - self._dropped + length]
        return text.decode(errors="replace")


def _bytes_pattern(pattern: str | re.Pattern[str]) -> re.Pattern[bytes]:
    if isinstance(pattern, str):
        return re.compile(re.escape(pattern.encode()))
    return re.compile(pattern.pattern.encode(), pattern.flags & ~re.UNICODE)


def _name(pattern: str | re.Pattern[str]) -> str:
    return repr(pattern) if isinstance(pattern, str) else repr(pattern.pattern)

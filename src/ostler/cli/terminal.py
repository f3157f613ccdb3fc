"""The size of the terminal that a guest's console is shown in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostler.control.vm import VM


@contextmanager
def size_followed(vm: VM, fd: int) -> Iterator[None]:
    """Have the guest know the size of the terminal `fd`, now and whenever it changes."""

    def tell(number: int = 0, frame: FrameType | None = None) -> None:
        size = os.get_terminal_size(fd)
        vm.resize_console(size.columns, size.lines)

    tell()
    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)

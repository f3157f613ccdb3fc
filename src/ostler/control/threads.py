"""Threads that `ps` and `top` show by their names."""

from __future__ import annotations

import threading
from contextlib import suppress


class NamedThread(threading.Thread):
    """A thread whose name Linux knows, too; Python itself tells it from 3.14 on."""

    def run(self) -> None:
        # Fifteen bytes of it. Without /proc there are no names, and nobody to look at them.
        with suppress(OSError), open("/proc/thread-self/comm", "w") as comm:
            comm.write(self.name)
        super().run()

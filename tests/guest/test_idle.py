"""An idle guest sleeps, by MWAIT or by HLT: it uses under 2 % of a core."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from stock import SLOWER, process

from guests.fetch import Kernel

pytestmark = pytest.mark.guest

SETTLE_S = 3 * SLOWER
# Long enough that one thing Linux had put off (0.2 s were seen) does not pass for its being busy.
WATCH_S = 30


@pytest.mark.parametrize("append", ["", "idle=halt"])
def test_idle_guest_uses_under_2_percent_of_a_core(cloud: Kernel, append: str) -> None:
    with process(cloud, append=append) as guest:
        guest.wait_until_ready()
        time.sleep(SETTLE_S)
        before = _cpu_seconds(guest.popen.pid)
        time.sleep(WATCH_S)
        used = (_cpu_seconds(guest.popen.pid) - before) / WATCH_S
    assert used < 0.02


def _cpu_seconds(pid: int) -> float:
    """User and system time of the process, all its threads (proc_pid_stat(5), fields 14, 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

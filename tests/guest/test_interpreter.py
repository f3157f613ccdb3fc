"""A guest whose devices are Rust's runs on while a Python thread keeps the interpreter."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

import pytest
from stock import SLOWER, Boot, start_shell

from guests.fetch import Kernel

pytestmark = pytest.mark.guest

SECTOR_BYTES = 512
# Sleeps by a timer, reads past the page cache and writes the next digit to the first sector, for
# ever. Linux stays quiet: its serial port is a device in Python.
COUNT = (
    "dmesg -n 1; (n=0; while usleep 100000; do n=$(((n + 1) % 10));"
    " dd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct;"
    " printf $n | dd of=/dev/vda bs=512 conv=sync,notrunc oflag=direct; done) 2>/dev/null &"
)
HOLD_S = 20.0 * SLOWER
# A vCPU may be in a Python device just when the interpreter is taken away from it.
TRIES = 6


def changes_while_kept(first: mmap.mmap, wanted: int) -> int:
    """How often the guest wrote another digit while this thread never let go of the GIL."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    try:
        last, seen, deadline = first[0], 0, time.monotonic() + HOLD_S
        while seen < wanted and time.monotonic() < deadline:
            if first[0] != last:
                last, seen = first[0], seen + 1
        return seen
    finally:
        sys.setswitchinterval(interval)


def test_timers_interrupts_and_the_disk_need_no_interpreter(
    boot: Boot, cloud: Kernel, tmp_path: Path
) -> None:
    path = tmp_path / "count.img"
    path.write_bytes(bytes(1 << 20))
    vm = start_shell(boot, cloud, disks=[path], net="none")
    vm.serial.run(COUNT)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SECTOR_BYTES) as first:
        seen = 0
        for _ in range(TRIES):
            time.sleep(0.5)
            seen = max(seen, changes_while_kept(first, wanted=3))
            if seen == 3:
                return
    pytest.fail(f"the guest wrote {seen} times in {HOLD_S} s")

"""What a machine takes of its host's memory beyond its guest's."""

from __future__ import annotations

import os
import time

import pytest
from stock import SLOWER, process

from guests.fetch import Kernel
from guests.memory import beyond_guest_bytes

pytestmark = pytest.mark.guest

GUEST_BYTES = 256 << 20
LIMIT_BYTES = 64 << 20
# What a vCPU has in its tables goes back to the host when it has slept for a while.
SETTLE_S = 60 * SLOWER


def test_machine_at_its_shell_takes_at_most_64_mib_beyond_the_guest(cloud: Kernel) -> None:
    with process(cloud, "--cpus", "1") as guest:
        guest.wait_until_ready()
        deadline = time.monotonic() + SETTLE_S
        while (taken := beyond_guest_bytes(guest.popen.pid, GUEST_BYTES)) > LIMIT_BYTES:
            assert time.monotonic() < deadline, f"{taken >> 20} MiB"
            time.sleep(0.5)


def test_process_without_a_guest_is_told_from_one() -> None:
    with pytest.raises(ValueError, match="no mapping"):
        beyond_guest_bytes(os.getpid(), 1 << 50)

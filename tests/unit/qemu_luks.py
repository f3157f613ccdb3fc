"""Encrypted images made by qemu-img, which refuses at times."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Sequence
from os import PathLike

REFUSED_S = 60
REFUSAL = "accurate CPU usage"


def create(command: Sequence[str | PathLike[str]]) -> None:
    """Run a `qemu-img create`, again where its clock says that hashing took no time.

    Its clock may tick in step with it: each try comes at another moment of the tick.
    """
    deadline = time.monotonic() + REFUSED_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert REFUSAL in done.stderr, done.stderr
        assert time.monotonic() < deadline, done.stderr
        time.sleep(random.uniform(0.01, 0.2))

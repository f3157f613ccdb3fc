"""The thread that watches a back-end's devices and processes, for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ostler.net.monitor import MonitorThread


@pytest.fixture
def monitor() -> Iterator[MonitorThread]:
    """Watches devices and processes until the test is over."""
    thread = MonitorThread()
    yield thread
    thread.close()

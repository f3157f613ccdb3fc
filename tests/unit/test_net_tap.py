"""tap devices of our own making: one that vanishes is reported."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from net_events import Heard

from ostler.engine import NetLinks
from ostler.net import interface
from ostler.net.monitor import MonitorThread
from ostler.net.tap import Tap

PATIENCE_S = 60

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or shutil.which("ip") is None,
    reason="making tap devices takes root, ip and /dev/net/tun",
)


@pytest.mark.parametrize("queues", [1, 2])
def test_device_that_vanishes_is_reported(queues: int) -> None:
    monitor, heard = MonitorThread(), Heard()
    try:
        tap = Tap(NetLinks(), monitor, heard, queues=queues)
        assert interface.exists(tap.name)
        subprocess.run(["ip", "link", "del", tap.name], check=True)
        heard.await_change()
        assert heard.reports == [f"the tap device {tap.name} is gone; the guest has no carrier"]
        tap.close()
    finally:
        monitor.close()

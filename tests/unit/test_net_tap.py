"""tap devices of our own making: one that vanishes is reported."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from net_events import Heard

from ostler.engine import NetLink, NetLinks, VirtioWorkers, VirtualMachine
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
        assert not tap.link.up
        assert heard.reports == [f"the tap device {tap.name} is gone; the guest has no carrier"]
        tap.close()
    finally:
        monitor.close()


def test_queues_that_the_driver_does_not_use_are_detached() -> None:
    monitor = MonitorThread()
    try:
        tap = Tap(NetLinks(), monitor, Heard(), queues=3)
        queues = Path("/sys/class/net", tap.name, "queues")
        assert isinstance(tap.link, NetLink)
        nic = VirtioWorkers(VirtualMachine("soft").memory).nic(tap.link, bytes(6), 3)
        assert len(list(queues.glob("tx-*"))) == 3
        used = []
        nic.negotiate(0)
        used.append(len(list(queues.glob("tx-*"))))
        for pairs in (2, 3, 1):
            nic.restore({**nic.settings(), "pairs": pairs})
            used.append(len(list(queues.glob("tx-*"))))
        assert used == [1, 2, 3, 1]
        tap.close()
    finally:
        monitor.close()


def test_traffic_is_counted_from_the_guests_side() -> None:
    monitor = MonitorThread()
    try:
        tap = Tap(NetLinks(), monitor, Heard())
        frame = bytes(12) + b"\xff" * 6 + bytes(6) + b"\x88\xb5" + bytes(46)
        for _ in range(3):
            os.write(tap._fds[0], frame)
        traffic = tap.traffic()
        assert traffic is not None
        _, sent = traffic
        assert sent[:2] == (3, 3 * (len(frame) - 12))
        tap.close()
        assert interface.traffic("none such") == ((0,) * 4, (0,) * 4)
    finally:
        monitor.close()

"""macvtap devices on a cable of the host: made, reached, vanished, left behind, refused."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from net_events import Heard

from ostler.config import MachineConfig, parse_nets
from ostler.engine import NetLinks
from ostler.errors import ConfigError, HostError
from ostler.machine.networks import open_networks
from ostler.net import interface, macvtap, rtnetlink
from ostler.net.mac import random_mac
from ostler.net.macvtap import Macvtap
from ostler.net.monitor import MonitorThread

pytest_plugins = ["net_monitor"]

PATIENCE_S = 60


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def cable() -> Iterator[str]:
    """A card of this host, with a cable to another."""
    name, other = f"omc{os.getpid()}", f"omd{os.getpid()}"
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("making network devices takes root and ip")
    assert ip("link", "add", name, "type", "veth", "peer", "name", other)
    try:
        ip("link", "set", name, "up")
        ip("link", "set", other, "up")
        if not ip("link", "add", "link", name, "name", f"ome{os.getpid()}", "type", "macvtap"):
            pytest.skip("this kernel has no macvtap")
        yield name
    finally:
        ip("link", "del", name)


@pytest.mark.parametrize("queues", [1, 2])
def test_device_has_the_guests_address_and_goes_with_the_machine(
    cable: str, monitor: MonitorThread, queues: int
) -> None:
    mac = random_mac()
    tap = Macvtap(NetLinks(), monitor, Heard(), cable, mac, queues=queues)
    assert Path(f"/sys/class/net/{tap.name}/address").read_text().strip() == mac.hex(":")
    assert tap.mtu == 1500
    assert tap.link.up
    second = Macvtap(NetLinks(), monitor, Heard(), cable, random_mac(), mtu=1400)
    assert second.name != tap.name
    assert interface.mtu(second.name) == 1400
    for device in (tap, second):
        device.close()
        assert not interface.exists(device.name)


def test_device_that_vanishes_is_reported_and_its_link_is_down(
    cable: str, monitor: MonitorThread
) -> None:
    heard = Heard()
    tap = Macvtap(NetLinks(), monitor, heard, cable, random_mac())
    rtnetlink.delete_link(tap.name)
    heard.await_change()
    assert heard.reports == [f"the macvtap device {tap.name} is gone; the guest has no carrier"]
    assert not tap.link.up
    tap.close()


def test_device_of_a_process_that_was_killed_is_removed_by_the_next(cable: str) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    space = os.stat("/proc/self/ns/pid").st_ino & 0xFF
    left, anothers, alike, running = (
        macvtap.NAME.format(number, pid, count)
        for number, pid, count in (
            (space, process.pid, 0),
            (space ^ 1, process.pid, 0),
            (space, process.pid, 1),
            (space, os.getpid(), 9),
        )
    )
    # The namespace of `alike` has the same last byte as ours.
    owners = {left: macvtap.owner(), anothers: "", alike: "ostler 1", running: macvtap.owner()}
    for name, owner in owners.items():
        rtnetlink.add_macvtap(name, cable, random_mac())
        rtnetlink.set_alias(name, owner)
    macvtap.remove_left_behind()
    assert {name for name in owners if interface.exists(name)} == {anothers, alike, running}


def test_machine_on_a_card_that_is_not_there_is_refused() -> None:
    config = MachineConfig(kernel=Path("kernel"), nets=parse_nets("macvtap=none0"))
    with (
        pytest.raises(ConfigError, match=r"the host has no interface none0; `ip link` lists"),
        open_networks(config, NetLinks()),
    ):
        pass


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.EPERM, "is not permitted; run as root or with CAP_NET_ADMIN, or use --net user"),
        (errno.EOPNOTSUPP, "the host's kernel has no macvtap; modprobe macvtap, or use --net tap"),
        (errno.EBUSY, "may be a port of a bridge; name another card"),
        (errno.ENOMEM, "Cannot allocate memory; run as root"),
    ],
)
def test_host_that_refuses_says_why_and_leaves_nothing(
    monitor: MonitorThread, monkeypatch: pytest.MonkeyPatch, number: int, cure: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rtnetlink, "add_macvtap", refuse)
    with pytest.raises(HostError, match=f"--net macvtap=lo: .*{cure}"):
        Macvtap(NetLinks(), monitor, Heard(), "lo", random_mac())
    assert not [name for _, name in socket.if_nameindex() if f"t{os.getpid()}." in name]


def test_mtu_above_the_cards_is_refused_before_anything_is_made(monitor: MonitorThread) -> None:
    most = interface.mtu("lo")
    with pytest.raises(ConfigError, match=f"mtu={most + 1}: above the card's, which is {most}"):
        Macvtap(NetLinks(), monitor, Heard(), "lo", random_mac(), mtu=most + 1)

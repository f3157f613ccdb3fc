"""Cables that are sockets: who calls and who listens, peers that go, addresses that cannot be."""

from __future__ import annotations

import os
import socket
import stat
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from net_events import Heard

from ostler.engine.network import NetLinks
from ostler.errors import ConfigError
from ostler.net.monitor import MonitorThread
from ostler.net.sockets import DatagramSocket, StreamSocket, UdpSocket

pytest_plugins = ["net_monitor"]

PATIENCE_S = 60


def test_second_of_two_machines_calls_the_first(monitor: MonitorThread, tmp_path: Path) -> None:
    path = str(tmp_path / "lan")
    first, second = Heard(), Heard()
    listening = StreamSocket(NetLinks(), monitor, first, path)
    assert not listening.link.up
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    calling = StreamSocket(NetLinks(), monitor, second, path)
    first.await_change()
    assert calling.link.up
    assert listening.link.up
    calling.close()
    first.await_change()
    assert not listening.link.up
    listening.close()
    assert not Path(path).exists()


def test_caller_whose_peer_went_calls_again(monitor: MonitorThread, tmp_path: Path) -> None:
    path = str(tmp_path / "lan")
    heard = Heard()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE_S)
        backend = StreamSocket(NetLinks(), monitor, heard, path)
        listener.accept()[0].close()
        heard.await_change()
        again, _ = listener.accept()
        with again:
            heard.await_change()
            assert backend.link.up
            assert heard.reports == [f"--net socket={path}: the other end is gone; calling again"]
    backend.close()


def test_third_at_a_socket_is_hung_up_on(monitor: MonitorThread, tmp_path: Path) -> None:
    path = str(tmp_path / "lan")
    heard = Heard()
    backend = StreamSocket(NetLinks(), monitor, heard, path)
    with socket.socket(socket.AF_UNIX) as peer, socket.socket(socket.AF_UNIX) as third:
        peer.connect(path)
        heard.await_change()
        third.settimeout(PATIENCE_S)
        third.connect(path)
        assert third.recv(1) == b""
        assert backend.link.up
    backend.close()


def test_socket_left_behind_is_taken_over_and_other_files_are_not(
    monitor: MonitorThread, tmp_path: Path
) -> None:
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left))
    StreamSocket(NetLinks(), monitor, Heard(), str(left)).close()
    kept = tmp_path / "kept"
    kept.write_text("precious")
    with pytest.raises(ConfigError, match="kept: Address already in use"):
        StreamSocket(NetLinks(), monitor, Heard(), str(kept))
    with pytest.raises(ConfigError, match="kept: Address already in use"):
        DatagramSocket(NetLinks(), monitor, str(kept), str(left))
    assert kept.read_text() == "precious"
    with pytest.raises(ConfigError, match="too long"):
        StreamSocket(NetLinks(), monitor, Heard(), str(tmp_path / ("x" * 200)))


def test_datagram_socket_finds_a_peer_that_comes_later(
    monitor: MonitorThread, tmp_path: Path
) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    with ExitStack() as stack:
        early = DatagramSocket(NetLinks(), monitor, one, two)
        stack.callback(early.close)
        assert early.link.up
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
            late.bind(two)
            while not is_connected(early, two):
                threading.Event().wait(0.05)
    assert not Path(one).exists()


def is_connected(backend: DatagramSocket, path: str) -> bool:
    try:
        return bool(backend._end.getpeername() == path)
    except OSError:
        return False


def test_udp_address_that_cannot_be_says_why() -> None:
    for wrong in ("nowhere", "127.0.0.1:x", "127.0.0.1:99999"):
        with pytest.raises(ConfigError, match="is no HOST:PORT"):
            UdpSocket(NetLinks(), "127.0.0.1:0", wrong)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        local = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match="Address already in use"):
            UdpSocket(NetLinks(), local, "127.0.0.1:9")

"""The host's ends of console ports, with pipes in place of a device."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ostler.config import MachineConfig, PortConfig, PortKind
from ostler.control.ports import Consoles, PortEnds, open_ends
from ostler.errors import ConfigError

PATIENCE_S = 20


class Fixture:
    """The ends of one boot of `ports`."""

    def __init__(self, *texts: str) -> None:
        configs = [PortConfig.parse(text) for text in texts]
        self.consoles = Consoles(configs)
        self._open = open_ends(configs, self.consoles)
        self._boot = PortEnds(self._open.__enter__())
        self.ports = {port.name: port for port in self._boot.ports}
        self.told: queue.Queue[bool] = queue.Queue()
        for port in self._boot.ports:
            port.announce = lambda port=port: self.told.put(port.connected)  # type: ignore[misc]
        self._boot.start()

    def close(self) -> None:
        self._boot.close()
        self._open.__exit__(None, None, None)


def client(path: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(PATIENCE_S)
    stream.connect(str(path))
    return stream


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "port"


@pytest.fixture
def unix(path: Path) -> Iterator[Fixture]:
    with closing(Fixture(f"agent=unix:{path}")) as fixture:
        yield fixture


def test_object_gets_output_at_once_and_input_waits_for_the_guest() -> None:
    with closing(Fixture("agent")) as fixture:
        port, console = fixture.ports["agent"], fixture.consoles["agent"]
        os.write(port.output_fd, b"hello")
        assert console.wait_for("hello", timeout=PATIENCE_S) == "hello"
        console.write("early")
        os.set_blocking(port.input_fd, False)
        with pytest.raises(BlockingIOError):
            os.read(port.input_fd, 16)
        os.set_blocking(port.input_fd, True)
        port.on_open(True)
        assert os.read(port.input_fd, 16) == b"early"
        with pytest.raises(ConfigError, match="no port 'other'; there is: agent"):
            fixture.consoles["other"]


def test_file_takes_what_the_guest_prints(tmp_path: Path) -> None:
    with closing(Fixture(f"log=file:{tmp_path}/log")) as fixture:
        port = fixture.ports["log"]
        os.write(port.output_fd, b"line\n")
        assert os.read(port.input_fd, 1) == b""
    assert (tmp_path / "log").read_bytes() == b"line\n"


def test_socket_connects_one_client_after_another(unix: Fixture, path: Path) -> None:
    port = unix.ports["agent"]
    assert not port.connected
    for name in (b"first", b"second"):
        with client(path) as stream:
            assert unix.told.get(timeout=PATIENCE_S) is True
            port.on_open(True)
            stream.sendall(name)
            assert os.read(port.input_fd, 16) == name
            os.write(port.output_fd, b"to the " + name)
            assert stream.recv(16) == b"to the " + name
        assert unix.told.get(timeout=PATIENCE_S) is False


def test_socket_client_that_ends_its_input_still_gets_the_answer(unix: Fixture, path: Path) -> None:
    port = unix.ports["agent"]
    with client(path) as stream:
        # Before the guest listens: it must not be lost.
        stream.sendall(b"question")
        stream.shutdown(socket.SHUT_WR)
        assert unix.told.get(timeout=PATIENCE_S) is True
        port.on_open(True)
        assert os.read(port.input_fd, 16) == b"question"
        os.write(port.output_fd, b"answer")
        assert stream.recv(16) == b"answer"


def test_socket_carries_more_than_a_pipe_holds_both_ways(unix: Fixture, path: Path) -> None:
    port, blob = unix.ports["agent"], os.urandom(1 << 18)
    port.on_open(True)
    with client(path) as stream:
        stream.setblocking(False)
        sent, got = 0, b""
        while len(got) < len(blob):
            with suppress(BlockingIOError):
                sent += stream.send(blob[sent:])
            got += os.read(port.input_fd, 4096)
        assert got == blob
        stream.settimeout(PATIENCE_S)
        for start in range(0, len(blob), 4096):
            os.write(port.output_fd, blob[start : start + 4096])
            piece = b""
            while len(piece) < 4096:
                piece += stream.recv(4096)
            assert piece == blob[start : start + 4096]
    assert unix.told.get(timeout=PATIENCE_S) is True
    assert unix.told.get(timeout=PATIENCE_S) is False


def test_output_without_a_client_is_dropped_and_never_stops_the_guest(unix: Fixture) -> None:
    for _ in range(64):
        os.write(unix.ports["agent"].output_fd, bytes(4096))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 64 printable"),
        ("a/b", "no '/'"),
        ("x" * 65, "1 to 64 printable"),
        ("a=tcp:1", "write NAME"),
        ("a=unix:", "write NAME"),
    ],
)
def test_port_that_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        PortConfig.parse(text)


def test_ports_of_one_name_or_too_many_or_at_no_place_are_refused(tmp_path: Path) -> None:
    for names, why in ((["a", "b", "a"], "a: the name is given twice"), (range(31), "at most 30")):
        ports = tuple(PortConfig(str(name)) for name in names)
        with pytest.raises(ConfigError, match=why):
            MachineConfig(kernel=Path("k"), consoles=ports)
    for kind in (PortKind.UNIX, PortKind.FILE):
        ports = (PortConfig("a", kind, tmp_path / "no" / "file"),)
        with (
            pytest.raises(ConfigError, match=r"--console a: .*No such file"),
            open_ends(ports, Consoles(ports)),
        ):
            pass

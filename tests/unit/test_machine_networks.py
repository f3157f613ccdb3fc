"""A machine's cards and their back-ends: which program is started how, and what is said if not.

passt is one of our own here, which says how it was called and stays until it is ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostler.config import (
    DeviceConfig,
    MachineConfig,
    NetConfig,
    PublishConfig,
    parse_device,
    parse_nets,
)
from ostler.engine.network import NetLinks
from ostler.errors import ConfigError, HostError
from ostler.machine.networks import open_networks
from ostler.net.backend import Backend
from ostler.net.passt import not_started

PUBLISHED = (PublishConfig(0x4000 + os.getpid() % 0x4000, 22),)
Calls = Callable[[], list[list[str]]]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """How the processes that serve guests were called; each is waited for."""
    programs, said = tmp_path / "bin", tmp_path / "said"
    programs.mkdir()
    os.mkfifo(said)
    passt = programs / "passt"
    passt.write_text(f'#!/bin/sh\necho "$@" >{said}\nexec sleep 1000\n')
    passt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def read() -> list[list[str]]:
        return [line.split() for line in said.read_text().splitlines()]

    return read


def machine(*nets: str, publish: tuple[PublishConfig, ...] = ()) -> MachineConfig:
    return MachineConfig(
        kernel=Path("kernel"), nets=parse_nets(nets) if nets else None, publish=publish
    )


@pytest.mark.parametrize("nets", [(), ("user",)])
def test_published_port_is_passed_on_whether_a_card_was_asked_for_or_not(
    calls: Calls, nets: tuple[str, ...]
) -> None:
    with open_networks(machine(*nets, publish=PUBLISHED), NetLinks()) as networks:
        (arguments,) = calls()
        assert len(networks) == 1
    forward = f"127.0.0.1/{PUBLISHED[0].port}:22"
    assert arguments[arguments.index("-t") + 1] == forward


def test_published_port_leads_to_the_first_of_two_cards_configured_alike(calls: Calls) -> None:
    with open_networks(machine("user", "user", publish=PUBLISHED), NetLinks()) as networks:
        both = calls()
        both += calls() if len(both) < 2 else []
        assert len(networks) == 2
    assert sorted("-t" in arguments for arguments in both) == [False, True]


def test_default_network_without_passt_is_left_out_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    with open_networks(machine(), NetLinks(), said.append) as networks:
        assert networks == []
    (line,) = said
    assert line.startswith("the guest has no network: passt is not installed; apt-get")
    with (
        pytest.raises(HostError, match="passt is not installed; apt-get"),
        open_networks(machine("user"), NetLinks()),
    ):
        pass


def test_passt_that_cannot_run_is_told_from_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged = tmp_path / "passt"
    damaged.write_bytes(b"\x7fELF no program")
    damaged.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    with open_networks(machine(), NetLinks(), said.append) as networks:
        assert networks == []
    assert said == [
        "the guest has no network: --net user: passt cannot be started: passt: Exec format error;"
        " put that right, or give --net none"
    ]
    with (
        pytest.raises(HostError, match="Exec format error"),
        open_networks(machine("user"), NetLinks()),
    ):
        pass


def test_passt_on_a_host_without_dev_null_says_what_is_missing() -> None:
    error = FileNotFoundError(2, "No such file or directory", "/dev/null")
    assert not_started(error).startswith("passt cannot be started: /dev/null: No such file")


def test_card_of_a_machine_keeps_what_was_asked_for(calls: Calls) -> None:
    net = NetConfig("switch", "lan", mac="52:54:00:00:11:22")
    config = MachineConfig(kernel=Path("kernel"), nets=(net,))
    with open_networks(config, NetLinks()) as networks:
        assert networks[0].mac == net.mac_bytes
        assert networks[0].config == net


class FakeTap(Backend):
    """A tap device that the kernel serves, or refuses to."""

    def __init__(self, refuses: OSError | None) -> None:
        self.refuses = refuses
        self.link: Any = self

    def served_by_kernel(self) -> str:
        if self.refuses is not None:
            raise self.refuses
        return "the kernel's"


def links_of(
    monkeypatch: pytest.MonkeyPatch,
    nets: str,
    accelerator: str = "kvm",
    refuses: OSError | None = None,
    devices: tuple[DeviceConfig, ...] = (),
) -> tuple[Any, list[str]]:
    """What serves the card of such a machine, and what was said of that."""
    said: list[str] = []
    monkeypatch.setattr("ostler.net.tap.Tap", lambda *_, **__: FakeTap(refuses))
    config = MachineConfig(kernel=Path("kernel"), nets=parse_nets(nets), devices=devices)
    with open_networks(config, NetLinks(), said.append, accelerator) as networks:
        return networks[0].link, said


def test_kernel_moves_the_frames_of_a_tap_device_where_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for nets in ("tap", "tap,vhost=on"):
        assert links_of(monkeypatch, nets) == ("the kernel's", [])
    for nets, accelerator in (("tap,vhost=off", "kvm"), ("tap,hash=on", "kvm"), ("tap", "soft")):
        link, said = links_of(monkeypatch, nets, accelerator)
        assert isinstance(link, FakeTap)
        assert said == []


def test_kernel_that_cannot_is_said_once_or_refused_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = FileNotFoundError(2, "No such file or directory")
    link, said = links_of(monkeypatch, "tap", refuses=missing)
    assert isinstance(link, FakeTap)
    assert said == [
        "--net tap: vhost-net: /dev/vhost-net is not there (modprobe vhost_net);"
        " this process moves the frames instead"
    ]
    for error, why in (
        (missing, "modprobe vhost_net"),
        (PermissionError(13, "Permission denied"), "setfacl -m u:USER:rw /dev/vhost-net"),
        (OSError(12, "Cannot allocate memory"), "the host refuses: Cannot allocate memory"),
    ):
        with pytest.raises(HostError, match=why):
            links_of(monkeypatch, "tap,vhost=on", refuses=error)


def test_kernel_is_not_asked_for_where_it_would_write_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"vhost=on: the software CPU does not see .*--accel kvm"):
        links_of(monkeypatch, "tap,vhost=on", "soft")
    memory = (parse_device("virtio-mem,size=1G"),)
    with pytest.raises(ConfigError, match=r"vhost=on: .* leave one out"):
        links_of(monkeypatch, "tap,vhost=on", devices=memory)
    assert isinstance(links_of(monkeypatch, "tap", devices=memory)[0], FakeTap)

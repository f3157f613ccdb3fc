"""A guest on a card of the host by macvtap, and what is at the other end of that card's cable."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from bridge import ip
from stock import END_S, QUIET, Boot, start_shell

from guests import native
from guests.fetch import Kernel
from guests.images import initrd

GUEST, PEER, PORT = "10.79.0.2", "10.79.0.1", 7
CONNECTIONS, DATAGRAMS = 500, 500

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="network devices take root and ip"
    ),
]


@pytest.fixture
def card() -> Iterator[str]:
    """A card of this host, whose cable leads to a namespace with a server."""
    name, space = f"omg{os.getpid()}", f"omn{os.getpid()}"
    with ExitStack() as stack:
        ip("netns", "add", space)
        stack.callback(ip, "netns", "del", space)
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", name, "up")
        spare = f"omp{os.getpid()}"
        probe = ["ip", "link", "add", "link", name, "name", spare, "type", "macvtap"]
        if subprocess.run(probe, capture_output=True).returncode:
            pytest.skip("this kernel has no macvtap")
        ip("link", "del", spare)
        ip("-n", space, "addr", "add", f"{PEER}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        command = ["ip", "netns", "exec", space, str(native.talk()), "serve", str(PORT)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        stack.enter_context(server.stdout)
        stack.callback(server.wait)
        stack.callback(server.kill)
        assert server.stdout.readline()
        yield name


def test_guest_on_a_card_of_the_host_reaches_what_is_behind_it(
    boot: Boot, cloud: Kernel, card: str
) -> None:
    image = initrd(cloud, programs={"/bin/talk": native.talk()})
    vm = start_shell(boot, cloud, QUIET, initrd=image, net=f"macvtap={card}", memory="256M")
    vm.serial.run(f"ip link set eth0 up; ip addr add {GUEST}/24 dev eth0")
    assert vm.net[0].mac in vm.serial.run("cat /sys/class/net/eth0/address")
    said = vm.serial.run(f"ping -c 3 -s 8000 {PEER}", timeout=END_S)
    assert " 0% packet loss" in said
    said = vm.serial.run(f"talk connect {PEER} {PORT} {CONNECTIONS}", timeout=END_S)
    assert f"{CONNECTIONS} connections" in said
    whole = f"{DATAGRAMS} of {DATAGRAMS} back, 0 twice"
    assert whole in vm.serial.run(f"talk datagrams {PEER} {PORT} {DATAGRAMS}", timeout=END_S)
    assert vm.net[0].sent.errors == vm.net[0].received.errors == 0

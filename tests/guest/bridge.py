"""A bridge of this host, and a peer with real programs in a network namespace behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from stock import SLOWER

LONG_S = 300 * SLOWER
GUEST4, GUEST6 = "10.77.0.2", "fd00:77::2"
PEER4, PEER6 = "10.77.0.1", "fd00:77::1"
SETUP = (
    # Nobody else can have the address, and looking for him takes a second.
    "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad && ip link set lo up && ip link set eth0 up"
    f" && ip addr add {GUEST4}/24 dev eth0 && ip addr add {GUEST6}/64 dev eth0"
    f" && echo nameserver {PEER4} >/etc/resolv.conf"
)
PEER = Path(__file__).with_name("peer.py")

takes_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or shutil.which("ip") is None,
    reason="making bridges and namespaces takes root, ip and /dev/net/tun",
)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"


class Bridge:
    """A bridge of this host, and a namespace that is connected to it."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.name, self.space = f"obr{os.getpid()}", f"ostler{os.getpid()}"
        self.folder, self._stack = folder, stack
        port = f"ove{os.getpid()}"
        ip("netns", "add", self.space)
        stack.callback(ip, "netns", "del", self.space)
        ip("link", "add", self.name, "type", "bridge")
        stack.callback(ip, "link", "del", self.name)
        ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.space)
        ip("link", "set", port, "master", self.name, "up")
        ip("link", "set", self.name, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("addr", "add", f"{PEER4}/24", "dev", "eth0"),
            ("-6", "addr", "add", f"{PEER6}/64", "dev", "eth0", "nodad"),
        ):
            ip("-n", self.space, *words)

    def run(self, *command: str | Path) -> str:
        """What a program in the namespace prints; it has to succeed."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.space, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=LONG_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *command: str | Path) -> None:
        """Start a server there, and wait for the line that says it is there."""
        server = subprocess.Popen(
            ["ip", "netns", "exec", self.space, *map(str, command)], stdout=subprocess.PIPE
        )
        assert server.stdout is not None
        self._stack.enter_context(server.stdout)
        self._stack.callback(server.wait)
        self._stack.callback(server.kill)
        assert server.stdout.readline(), f"{command} ended"

    def serve(self) -> None:
        """Serve `folder` by HTTP, and names."""
        self.start(sys.executable, PEER, self.folder, PEER4)

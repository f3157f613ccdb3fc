"""A guest on a bridge of the host, and a peer with real programs in a network namespace."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bridge import GUEST4, GUEST6, LONG_S, PEER4, PEER6, SETUP, Bridge, takes_root
from stock import END_S, QUIET, Boot, start_shell

import ostler
from guests import native
from guests.fetch import Kernel
from guests.images import initrd
from guests.rootfs import debian

PORT = 7
CONNECTIONS, DATAGRAMS = 10_000, 5_000
BLOB = hashlib.shake_128(b"bridge").digest(8 << 20)

pytestmark = [pytest.mark.guest, takes_root]


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    with ExitStack() as stack:
        yield Bridge(stack, tmp_path)


def start(boot: Boot, cloud: Kernel, bridge: Bridge, **options: object) -> ostler.VM:
    image = initrd(cloud, programs={"/bin/talk": native.talk()})
    queues = options.pop("queues", 1)
    net = f"tap={bridge.name},queues={queues}"
    vm = start_shell(boot, cloud, QUIET, initrd=image, net=net, **options)
    vm.serial.run(SETUP)
    return vm


def test_files_names_and_pings_go_both_ways_over_ipv4_and_ipv6(
    boot: Boot, cloud: Kernel, bridge: Bridge
) -> None:
    (bridge.folder / "blob").write_bytes(BLOB)
    digest = hashlib.sha256(BLOB).hexdigest()
    bridge.serve()
    vm = start(boot, cloud, bridge)
    for url in ("http://files.example:8000/blob", f"http://[{PEER6}]:8000/blob"):
        vm.serial.run(f"wget -q -O /tmp/blob {url}", timeout=END_S)
        assert digest in vm.serial.run("sha256sum </tmp/blob")
    for ping, address in (("ping", PEER4), ("ping -6", PEER6)):
        # More than a packet holds: fragments, each way.
        said = vm.serial.run(f"{ping} -c 3 -s 8000 {address}", timeout=END_S)
        assert " 0% packet loss" in said
    vm.serial.run("httpd -p 80 -h /tmp")
    fetch = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1]).read()))"
    for host in (GUEST4, f"[{GUEST6}]"):
        assert bridge.run(sys.executable, "-c", fetch, f"http://{host}/blob") == f"{len(BLOB)}\n"
    card = vm.net[0]
    assert card.sent.errors == card.received.errors == 0


def test_ten_thousand_connections_and_all_datagrams_are_answered_each_way(
    boot: Boot, cloud: Kernel, bridge: Bridge
) -> None:
    vm = start(boot, cloud, bridge)
    talk = native.talk()
    bridge.start(talk, "serve", str(PORT))
    vm.serial.run(f"(talk serve {PORT} >/dev/null &)")
    vm.serial.run(f"until netstat -ltn | grep -q ':{PORT} '; do usleep 50000; done", timeout=END_S)
    said = vm.serial.run(f"talk connect {PEER4} {PORT} {CONNECTIONS}", timeout=LONG_S)
    assert f"{CONNECTIONS} connections" in said
    assert bridge.run(talk, "connect", GUEST6, str(PORT), str(CONNECTIONS)) == (
        f"{CONNECTIONS} connections\n"
    )
    whole = f"{DATAGRAMS} of {DATAGRAMS} back, 0 twice"
    assert whole in vm.serial.run(f"talk datagrams {PEER6} {PORT} {DATAGRAMS}", timeout=LONG_S)
    assert whole in bridge.run(talk, "datagrams", GUEST4, str(PORT), str(DATAGRAMS))


def package(folder: Path) -> None:
    """A repository of one Debian package, whose program says that it is there."""
    control = b"Package: greeting\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example>\n"
    control += b"Description: a word\n"
    program = b"#!/bin/sh\necho it is installed\n"
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": _tar("./control", control, 0o644),
        "data.tar.gz": _tar("./usr/bin/greeting", program, 0o755),
    }
    deb = b"!<arch>\n"
    for name, content in parts.items():
        deb += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        deb += content + b"\n" * (len(content) % 2)
    (folder / "greeting.deb").write_bytes(deb)
    found = (
        f"Filename: ./greeting.deb\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n"
    )
    (folder / "Packages").write_bytes(control + found.encode())


def _tar(name: str, content: bytes, mode: int) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), mode
        tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(archive.getvalue())


def test_debians_own_tools_install_measure_and_set_queues(
    boot: Boot, cloud: Kernel, bridge: Bridge
) -> None:
    package(bridge.folder)
    bridge.serve()
    bridge.start("iperf3", "-s", "--forceflush")
    vm = start(boot, cloud, bridge, disks=[f"{debian()},overlay=on"], queues=2, cpus=2)
    vm.serial.run("mount -t ext4 /dev/vda /mnt && cp /etc/resolv.conf /mnt/etc")
    for place in ("proc", "sys", "dev"):
        vm.serial.run(f"mount --bind /{place} /mnt/{place}")
    vm.serial.run(
        "rm -rf /mnt/etc/apt/sources.list*;"
        f" echo 'deb [trusted=yes] http://{PEER4}:8000 ./' >/mnt/etc/apt/sources.list"
    )
    chroot = "PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot /mnt"
    vm.serial.run(f"{chroot} apt-get -q update", timeout=LONG_S)
    vm.serial.run(f"{chroot} apt-get -q -y install greeting", timeout=LONG_S)
    assert "it is installed" in vm.serial.run(f"{chroot} greeting")
    for direction in ("", "-R"):
        said = vm.serial.run(f"{chroot} iperf3 -c {PEER4} -t 2 -f m {direction}", timeout=LONG_S)
        assert "receiver" in said
    assert "Combined:\t2" in vm.serial.run(f"{chroot} ethtool -l eth0")
    for queues in (1, 2):
        vm.serial.run(f"{chroot} ethtool -L eth0 combined {queues}")
        ping = f"ping -c 5 -s 8000 {PEER4}"
        assert " 0% packet loss" in vm.serial.run(ping, timeout=END_S)

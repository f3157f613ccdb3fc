"""Stock Linux on a tap device whose frames the host's kernel moves: vhost-net, under `kvm`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bridge import GUEST4, GUEST6, LONG_S, PEER4, PEER6, SETUP, Bridge, takes_root
from stock import ACCELERATOR, END_S, QUIET, Boot, start_shell

import ostler
from guests import native
from guests.fetch import Kernel
from guests.images import initrd

pytestmark = [
    pytest.mark.guest,
    takes_root,
    pytest.mark.skipif(
        ACCELERATOR != "kvm" or not os.path.exists("/dev/vhost-net"),
        reason="takes the kvm accelerator (OSTLER_TEST_ACCELERATOR=kvm) and /dev/vhost-net",
    ),
]

PORT = 7
CONNECTIONS, DATAGRAMS = 300, 1_000
BLOB = hashlib.shake_128(b"vhost").digest(4 << 20)
DIGEST = hashlib.sha256(BLOB).hexdigest()
FETCH = "import sys, urllib.request; print(len(urllib.request.urlopen(sys.argv[1]).read()))"
DRIVER = "/sys/bus/virtio/drivers/virtio_net"


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    with ExitStack() as stack:
        yield Bridge(stack, tmp_path)


def threads() -> list[str]:
    """The names of this process's threads, the kernel's for it among them."""
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]


def kernel_seconds() -> float:
    """The time that the kernel's threads for this process have run."""
    ticks = 0
    for comm in Path("/proc").glob("[0-9]*/task/*/comm"):
        if comm.read_text().strip() == f"vhost-{os.getpid()}":
            fields = comm.with_name("stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def start(boot: Boot, cloud: Kernel, bridge: Bridge, **options: object) -> ostler.VM:
    image = initrd(cloud, programs={"/bin/talk": native.talk()})
    queues = options.get("cpus", 1)
    net = f"tap={bridge.name},queues={queues},vhost=on"
    vm = start_shell(boot, cloud, QUIET, initrd=image, net=net, memory="256M", **options)
    vm.serial.run(SETUP)
    return vm


def ping(vm: ostler.VM) -> str:
    return vm.serial.run(f"ping -c 3 -s 8000 {PEER4}", timeout=END_S)


def test_kernel_moves_the_frames_of_two_pairs_of_queues(
    boot: Boot, cloud: Kernel, bridge: Bridge
) -> None:
    (bridge.folder / "blob").write_bytes(BLOB)
    bridge.serve()
    talk = native.talk()
    bridge.start(talk, "serve", str(PORT))
    vm = start(boot, cloud, bridge, cpus=2)
    assert vm.net[0].vhost
    names = threads()
    assert {"vhost-rx0", "vhost-tx0", "vhost-rx1", "vhost-tx1"} <= set(names)
    assert not [name for name in names if re.match(r"net-[rt]x", name)]
    for url in ("http://files.example:8000/blob", f"http://[{PEER6}]:8000/blob"):
        vm.serial.run(f"wget -q -O /tmp/blob {url}", timeout=LONG_S)
        assert DIGEST in vm.serial.run("sha256sum </tmp/blob")
    for command, address in (("ping", PEER4), ("ping -6", PEER6)):
        # More than a packet holds: fragments, each way.
        said = vm.serial.run(f"{command} -c 3 -s 8000 {address}", timeout=END_S)
        assert " 0% packet loss" in said
    vm.serial.run("httpd -p 80 -h /tmp")
    for host in (GUEST4, f"[{GUEST6}]"):
        assert bridge.run(sys.executable, "-c", FETCH, f"http://{host}/blob") == f"{len(BLOB)}\n"
    said = vm.serial.run(f"talk connect {PEER4} {PORT} {CONNECTIONS}", timeout=LONG_S)
    assert f"{CONNECTIONS} connections" in said
    vm.serial.run(f"(talk serve {PORT} >/dev/null &)")
    vm.serial.run(f"until netstat -ltn | grep -q ':{PORT} '; do usleep 50000; done", timeout=END_S)
    whole = f"{DATAGRAMS} of {DATAGRAMS} back, 0 twice"
    assert whole in bridge.run(talk, "datagrams", GUEST4, str(PORT), str(DATAGRAMS))
    card = vm.net[0]
    assert card.received.bytes > 2 * len(BLOB) > card.received.frames > DATAGRAMS
    assert card.sent.bytes > 2 * len(BLOB) > card.sent.frames > DATAGRAMS
    assert kernel_seconds() > 0


def test_driver_that_goes_and_comes_back_finds_its_queues_served(
    boot: Boot, cloud: Kernel, bridge: Bridge
) -> None:
    vm = start(boot, cloud, bridge)
    assert " 0% packet loss" in ping(vm)
    vm.serial.run(f"ls {DRIVER} | grep virtio >/tmp/name")
    for _ in range(2):
        vm.serial.run(f"cat /tmp/name >{DRIVER}/unbind", timeout=END_S)
        assert not [name for name in threads() if name.startswith("vhost-rx")]
        vm.serial.run(f"cat /tmp/name >{DRIVER}/bind; sleep 1", timeout=END_S)
        vm.serial.run(SETUP)
        assert " 0% packet loss" in ping(vm)
    # What a snapshot takes and restores, in place.
    vm.pause()
    transport = vm.device("net0")
    saved = transport.save()
    receive = saved["queues"][0]
    assert receive["next_avail"] == receive["next_used"] > 0
    transport.load(saved)
    vm.resume()
    assert " 0% packet loss" in ping(vm)
    assert vm.net[0].vhost


def test_driver_without_msix_is_interrupted_as_well(
    boot: Boot, cloud: Kernel, bridge: Bridge
) -> None:
    image = initrd(cloud, programs={"/bin/talk": native.talk()})
    net = f"tap={bridge.name}"
    vm = start_shell(boot, cloud, f"{QUIET} pci=nomsi", initrd=image, net=net, memory="256M")
    vm.serial.run(SETUP)
    assert vm.net[0].vhost, "the default where the kernel can"
    assert " 0% packet loss" in ping(vm)

"""Linux's driver of the virtio console: the size of hvc0, and ports with names."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest
from stock import END_S, Boot, start_shell

from guests.fetch import Kernel

pytestmark = pytest.mark.guest

BLOB = hashlib.shake_128(b"console").digest(1 << 19)
PORTS = "cd /sys/class/virtio-ports; grep -H . */name"


@pytest.mark.parametrize("layout", ["on", "off"])
def test_named_ports_carry_bytes_and_the_console_has_its_size(
    boot: Boot, cloud: Kernel, tmp_path: Path, layout: str
) -> None:
    unix, log = tmp_path / "agent", tmp_path / "log"
    vm = start_shell(
        boot,
        cloud,
        devices=[f"virtio-console,packed={layout}"],
        consoles=["org.ostler.test", f"agent=unix:{unix}", f"log=file:{log}"],
        net="none",
    )
    serial = vm.serial
    vm.resize_console(132, 50)
    names = serial.run(PORTS).split()
    assert [name.partition(":")[2] for name in names] == ["org.ostler.test", "agent", "log"]
    port, agent, logged = (f"/dev/{name.partition('/')[0]}" for name in names)

    # An object of the host's: what is written before the guest listens is not lost.
    test = vm.console["org.ostler.test"]
    test.write("typed early\n")
    assert serial.run(f"head -n 1 {port}") == "typed early\n"
    serial.run(f"echo from the guest > {port}")
    assert test.wait_for("guest\n", timeout=END_S) == "from the guest\n"
    assert not vm.device("console").device.is_open("org.ostler.test")

    # A socket, with more than the queues and pipes hold.
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(END_S)
        stream.connect(str(unix))
        # Linux lets one program at a time open a port.
        serial.write(f"{{ head -c {len(BLOB)} <&3 | sha256sum >&3; }} 3<> {agent}\n")
        stream.sendall(BLOB)
        answer = stream.recv(64)
        while len(answer) < 64:
            answer += stream.recv(64 - len(answer))
        assert answer.decode() == hashlib.sha256(BLOB).hexdigest()

    serial.run(f"echo logged > {logged}")
    assert log.read_text() == "logged\n"

    assert serial.run("stty size < /dev/hvc0") == "50 132\n"
    vm.resize_console(80, 25)
    serial.run("until [ \"$(stty size < /dev/hvc0)\" = '25 80' ]; do sleep 0.1; done")


def test_ports_without_a_console_come_back_after_a_reboot(boot: Boot, cloud: Kernel) -> None:
    vm = start_shell(boot, cloud, consoles=["agent"], net="none")
    for word in ("one", "two"):
        assert vm.serial.run("ls /sys/class/hvc 2>/dev/null", check=False) == ""
        device = vm.serial.run("cd /sys/class/virtio-ports; echo *").strip()
        vm.serial.run(f"echo {word} > /dev/{device}")
        assert vm.console["agent"].wait_for(f"{word}\n", timeout=END_S)
        if word == "one":
            vm.reset()
            vm.serial.wait_for("ostler: ready", timeout=180)

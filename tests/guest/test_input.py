"""Linux's virtio_input driver."""

from __future__ import annotations

import re

import pytest
from stock import END_S, Boot, start_shell

from guests.fetch import Kernel
from guests.images import initrd

pytestmark = pytest.mark.guest

KEY_A = 30


def test_keys_and_moves_reach_the_guest(boot: Boot, cloud: Kernel) -> None:
    image = initrd(cloud, drivers=("virtio_input", "evdev"))
    devices = ["virtio-keyboard", "virtio-tablet"]
    vm = start_shell(boot, cloud, initrd=image, devices=devices)
    listed = vm.serial.run("cat /proc/bus/input/devices")
    handlers = dict(re.findall(r'Name="Ostler virtio (\w+)".*?(event\d+)', listed, re.DOTALL))
    assert handlers.keys() == {"keyboard", "tablet"}

    def heard(name: str) -> list[str]:
        """The first event that comes, as words of its 24 bytes."""
        said = vm.serial.wait_for(re.compile(rf"{name}:.*\n"), timeout=END_S)
        return said.split(f"{name}:")[-1].split()[-4:]

    for name in handlers:
        read = f"dd if=/dev/input/{handlers[name]} bs=24 count=1 2>/dev/null | od -An -tu2 -w24"
        vm.serial.write(f"(echo {name}: $({read})) & echo waiting\n")
        vm.serial.wait_for("waiting\r", timeout=END_S)
    vm.serial.run("sleep 1")
    vm.device("keyboard").device.press(KEY_A)
    assert heard("keyboard") == ["1", str(KEY_A), "1", "0"]
    vm.device("tablet").device.move(1, 1)
    assert heard("tablet") == ["3", "0", "32767", "0"]

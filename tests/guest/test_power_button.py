"""The power button: a stock kernel's ACPI driver hears it, and the guest can act on it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from stock import BOOT_S, END_S, READY, SPOKEN, Boot, process

import ostler
from guests.fetch import Kernel, busybox
from guests.images import SOURCES
from ostler import Ending
from ostler.image import Initramfs, ModuleTree

pytestmark = pytest.mark.guest

# As acpid or systemd-logind do: open the button's input device, wait for an event, power off.
OBEY = "exec 3< /dev/input/event0; (head -c 24 <&3 > /dev/null; poweroff -f) & "


@pytest.fixture
def shell(boot: Boot, cloud: Kernel, tmp_path: Path) -> ostler.VM:
    """A shell in a guest with the button's driver and that of input devices."""
    image = Initramfs()
    image.archive.add_file("/bin/busybox", busybox(), mode=0o755)
    image.add_init(SOURCES / "init/shell")
    image.add_modules(ModuleTree(cloud.modules), ["button", "evdev"])
    path = tmp_path / "initrd.gz"
    image.write(path)
    vm = boot(kernel=cloud.image, initrd=path, append=f"console=ttyS0 {SPOKEN}", memory="256M")
    vm.serial.wait_for(READY, timeout=BOOT_S)
    return vm


def test_power_button_reaches_a_guest_that_obeys(shell: ostler.VM) -> None:
    shell.serial.run(OBEY)
    assert shell.listens_to_power_button
    assert shell.shutdown(grace=END_S).ending is Ending.POWER_OFF


def test_power_button_ignored_ends_in_a_stop(shell: ostler.VM) -> None:
    assert shell.shutdown(grace=0.5).ending is Ending.STOPPED


def test_sigterm_of_a_guest_without_the_driver_ends_it_at_once(cloud: Kernel) -> None:
    with process(cloud) as guest:
        guest.wait_until_ready()
        guest.popen.send_signal(signal.SIGTERM)
        code, _, err = guest.finish()
    assert (code, err) == (128 + signal.SIGTERM, "")

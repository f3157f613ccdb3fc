"""Stock Linux drivers on the emulated network cards: e1000, 8139cp and 8139too."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from stock import END_S, QUIET, Boot, start_shell
from test_network import CONFIGURE, GATEWAY, GUEST, SILENT, carry_both_ways, listen

import ostler
from guests.fetch import Kernel, kernel
from guests.images import initrd
from ostler.devices.nic.rtl8139 import PlainRtl8139
from ostler.machine import virt

pytestmark = pytest.mark.guest
needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")

# The card as users name it, Linux's driver for it, and the words of `ethtool -i` in sysfs.
CARDS = [("e1000", "e1000"), ("rtl8139", "8139cp"), ("rtl8139", "8139too")]
DRIVERS = ("e1000", "8139cp", "8139too")


@pytest.fixture(scope="module")
def full() -> Kernel:
    """Debian's general kernel: the one for clouds has no such drivers."""
    return kernel("full")


def start(boot: Boot, full: Kernel, driver: str, **options: Any) -> ostler.VM:
    ramdisk = initrd(full, drivers=DRIVERS)
    vm = start_shell(boot, full, QUIET, initrd=ramdisk, memory="256M", **options)
    bound = vm.serial.run("readlink /sys/class/net/eth0/device/driver").strip().rpartition("/")[2]
    assert bound == driver
    return vm


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `rtl8139` be the chip as it was before the C+, which 8139too drives."""
    monkeypatch.setitem(virt.EMULATED_NICS, "rtl8139", PlainRtl8139)


@needs_passt
@pytest.mark.parametrize(("model", "driver"), CARDS, ids=DRIVERS)
def test_stock_driver_gets_an_address_and_carries_bytes_both_ways(
    boot: Boot, full: Kernel, model: str, driver: str, request: pytest.FixtureRequest
) -> None:
    if driver == "8139too":
        request.getfixturevalue("plain")
    vm = start(boot, full, driver, net=f"user,host=on,model={model},mac=52:54:00:00:00:79")
    assert "52:54:00:00:00:79" in vm.serial.run("cat /sys/class/net/eth0/address")
    lease = vm.serial.run("udhcpc -i eth0 -n -q -t 20 2>&1", timeout=END_S)
    assert f"lease of {GUEST} obtained from {GATEWAY}" in lease
    vm.serial.run("ip addr flush dev eth0")
    vm.serial.run(CONFIGURE)
    carry_both_ways(vm)
    errors = "cat /sys/class/net/eth0/statistics/rx_errors /sys/class/net/eth0/statistics/tx_errors"
    assert vm.serial.run(errors).split() == ["0", "0"]
    assert vm.net[0].sent.errors == vm.net[0].received.errors == 0
    # The driver sees a carrier that goes and comes back.
    carrier = "until grep -q %d /sys/class/net/eth0/carrier; do usleep 50000; done"
    for connected in (False, True):
        vm.net[0].set_link(connected)
        vm.serial.run(carrier % connected, timeout=END_S)
    with pytest.raises(ostler.errors.ConfigError, match="only virtio cards"):
        vm.net[0].announce()


def test_two_kinds_of_cards_talk_with_pings_fragments_and_tcp(boot: Boot, full: Kernel) -> None:
    one = start(boot, full, "e1000", net="switch=mixed,model=e1000")
    two = start(boot, full, "8139cp", net="switch=mixed,model=rtl8139")
    for number, vm in enumerate((one, two), 1):
        vm.serial.run(f"ip link set eth0 up; ip addr add 10.1.0.{number}/24 dev eth0")
        vm.serial.run("mkfifo /tmp/silence; dd if=/dev/urandom of=/tmp/sent bs=64k count=32")
    assert " 0% packet loss" in one.serial.run("ping -c 5 -s 8000 10.1.0.2", timeout=END_S)
    for number, sender, receiver in ((2, one, two), (1, two, one)):
        listen(receiver, 9, f"{SILENT} >/tmp/got")
        sender.serial.run(f"nc 10.1.0.{number} 9 </tmp/sent", timeout=END_S)
        receiver.serial.run("while pidof nc; do usleep 50000; done", timeout=END_S)
        digest = sender.serial.run("sha256sum </tmp/sent").split()[0]
        assert digest in receiver.serial.run("sha256sum </tmp/got")
    # A driver that is taken away and comes back finds the card as after power-up.
    one.serial.run("ip link set eth0 down; rmmod e1000")
    insert = "insmod $(grep e1000 /etc/modules.order)"
    one.serial.run(f"{insert}; ip link set eth0 up; ip addr add 10.1.0.1/24 dev eth0")
    again = "until ping -c 1 -W 1 10.1.0.2 >/dev/null; do :; done; echo heard"
    assert "heard" in one.serial.run(again, timeout=END_S)

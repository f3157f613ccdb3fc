"""The example devices of docs/write-a-device.md, driven by stock Linux drivers."""

from __future__ import annotations

from pathlib import Path

import pytest
from stock import END_S, Boot, start_shell

from guests.fetch import Kernel, kernel
from guests.images import initrd
from ostler.devices.virtio.device import F_RING_PACKED
from ostler.devices.virtio.transport import VirtioPci
from ostler.machine.plug import load_plug
from ostler.machine.virt import VirtBoard

pytestmark = pytest.mark.guest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


def test_printer_port_prints_by_the_stock_driver(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = kernel("full")
    vm = start_shell(
        boot,
        full,
        initrd=initrd(full, drivers=("parport_pc", "lp")),
        plug=[load_plug(str(EXAMPLES / "port_device.py"))],
    )
    vm.serial.run("echo hello from the guest > /dev/lp0")
    assert (tmp_path / "printed.txt").read_text() == "hello from the guest\n"


def test_early_console_hears_the_kernel_before_its_drivers(
    boot: Boot, cloud: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    plug = load_plug(str(EXAMPLES / "memory_device.py"))
    vm = start_shell(
        boot, cloud, "loglevel=6 earlycon=uart8250,mmio,0xf0000000 keep_bootcon", plug=[plug]
    )
    assert "Linux version" in vm.device("early-console").text
    capsys.readouterr()


def test_pci_function_is_told_of_a_panic(
    boot: Boot, cloud: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    vm = start_shell(
        boot,
        cloud,
        initrd=initrd(cloud, drivers=("pvpanic_pci",)),
        plug=[load_plug(str(EXAMPLES / "pci_device.py"))],
    )
    vm.serial.run("rmmod pvpanic_mmio")
    events = vm.device("panic-reporter").events
    assert vm.serial.run("cat /sys/bus/pci/drivers/pvpanic-pci/*/capability").strip() == "3"
    vm.serial.write("echo c > /proc/sysrq-trigger\n")
    vm.serial.wait_for("end Kernel panic", timeout=END_S)
    assert events.seen == [1]
    capsys.readouterr()


@pytest.mark.parametrize("machine", ["packed", "split"])
def test_virtio_device_answers_the_stock_driver(boot: Boot, cloud: Kernel, machine: str) -> None:
    def plug(board: VirtBoard) -> None:
        load_plug(str(EXAMPLES / "virtio_device.py"))(board)
        function = board.devices["counter"]
        assert isinstance(function, VirtioPci)
        if machine == "split":
            function.device.ring_features &= ~F_RING_PACKED

    vm = start_shell(boot, cloud, plug=[plug])
    assert vm.serial.run("cat /sys/class/misc/hw_random/rng_current").startswith("virtio_rng")
    read = "dd if=/dev/hwrng bs=16 count=1 2>/dev/null | od -An -tu1"
    numbers = [int(word) for word in vm.serial.run(read).split()]
    assert [(number - numbers[0]) & 0xFF for number in numbers] == list(range(16))

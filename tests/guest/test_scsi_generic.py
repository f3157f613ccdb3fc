"""Stock Linux on a SCSI device of the host, to which its commands are passed on.

The device is one of Linux's scsi_debug: `modprobe scsi_debug` makes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stock import END_S, Boot, start_shell

import ostler
from guests.fetch import Kernel
from guests.images import initrd
from guests.scsi_debug import DebugDevice, debug_device, takes_scsi_debug
from ostler.errors import HostError

pytestmark = [pytest.mark.guest, takes_scsi_debug]

SECTOR_BYTES = 512
PATTERN = bytes(range(256)) * 8
# Where scsi_debug fails when it is asked to.
BAD_SECTOR = 0x1234
MEDIUM_ERROR = 2
DROP_CACHES = "echo 3 >/proc/sys/vm/drop_caches"


@pytest.fixture
def device() -> DebugDevice:
    return debug_device()


@contextmanager
def failing(device: DebugDevice) -> Iterator[None]:
    """Have the device fail to read some sectors."""
    device.options.write_text(str(MEDIUM_ERROR))
    try:
        yield
    finally:
        device.options.write_text("0")


def start(boot: Boot, kernel: Kernel, path: Path) -> ostler.VM:
    image = initrd(kernel, drivers=("virtio_scsi", "sd_mod", "sg"))
    generic = [f"scsi-generic,path={path}"]
    vm = start_shell(
        boot, kernel, "quiet", initrd=image, devices=generic, net="none", memory="256M"
    )
    vm.serial.run("until [ -b /dev/sda ]; do usleep 100000; done", timeout=END_S)
    return vm


@pytest.mark.parametrize("by", ["generic", "block"])
def test_guest_reads_writes_and_hears_of_failures(
    boot: Boot, full: Kernel, device: DebugDevice, by: str
) -> None:
    path = device.generic if by == "generic" else device.block
    device.write(100, PATTERN)
    vm = start(boot, full, path)
    run = vm.serial.run
    about = "cd /sys/block/sda/device; cat vendor model rev"
    assert run(about).split() == device.identity.split()
    assert int(run("cat /sys/block/sda/size")) == device.sectors

    words = f"dd if=/dev/sda bs={SECTOR_BYTES} skip=100 count=4 2>/dev/null | sha256sum"
    assert device.digest(100, len(PATTERN)) in run(words)
    run("yes ostler | head -c 2048 >/tmp/data")
    run(f"dd if=/tmp/data of=/dev/sda bs={SECTOR_BYTES} seek=900 conv=fsync 2>/dev/null")
    assert device.read(900, 2048) == (b"ostler\n" * 300)[:2048]
    # As much as fits in a command, and more.
    run("dd if=/dev/urandom of=/dev/sda bs=1M seek=2 count=4 conv=fsync 2>/dev/null")
    run(DROP_CACHES)
    words = "dd if=/dev/sda bs=1M skip=2 count=4 2>/dev/null | sha256sum"
    assert device.digest(2 << 11, 4 << 20) in run(words)

    with failing(device):
        run(DROP_CACHES)
        words = f"dd if=/dev/sda of=/dev/null bs={SECTOR_BYTES} skip={BAD_SECTOR} count=1 2>&1"
        assert "Input/output error" in run(f"{words} || true", timeout=END_S)
    said = run("dmesg | grep sda")
    assert "Sense Key : Medium Error" in said
    assert "Unrecovered read error" in said
    run(DROP_CACHES)
    run(words.replace("2>&1", "2>/dev/null"), timeout=END_S)


@pytest.mark.parametrize(
    ("held", "asked"), [("generic", "generic"), ("block", "generic"), ("block", "block")]
)
def test_device_in_use_is_refused(
    boot: Boot, full: Kernel, device: DebugDevice, held: str, asked: str
) -> None:
    nodes = {"generic": device.generic, "block": device.block}
    holding = os.open(nodes[held], os.O_RDWR | os.O_EXCL | os.O_NONBLOCK)
    try:
        with pytest.raises(HostError, match=r"scsi-generic: .* it is in use"):
            start(boot, full, nodes[asked])
    finally:
        os.close(holding)


def test_part_of_a_device_is_refused(boot: Boot, full: Kernel, device: DebugDevice) -> None:
    with (
        device.partition(first=64, sectors=64) as part,
        pytest.raises(HostError, match="it is no SCSI device, or a part of one"),
    ):
        start(boot, full, part)

"""Disks of a configuration as their devices have them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ostler
from ostler.config import DiskConfig, MachineConfig
from ostler.devices.virtio.blk import F_MQ
from ostler.errors import DiskError
from ostler.machine.describe import draw
from ostler.machine.disks import GuestDisk, open_disks


def machine(text: str) -> MachineConfig:
    return MachineConfig(kernel=Path("vmlinuz"), disks=(DiskConfig.parse(text),))


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("cache", ["none", "directsync"])
def test_disk_around_the_hosts_cache_reads_what_was_written(
    tmp_path: Path, format: str, cache: str
) -> None:
    path = tmp_path / "disk"
    ostler.create_image(path, 1 << 20, format=format)
    content = bytes(range(256)) * 64
    try:
        with open_disks(machine(f"{path},format={format},cache={cache}")) as (disk,):
            disk.disk.write(4096, content)
            disk.disk.write(70_144, content[:512])
            disk.disk.flush()
            assert disk.disk.read(4096, len(content)) == content
    except DiskError as error:
        if "O_DIRECT" in str(error):
            pytest.skip("a file system without O_DIRECT")
        raise
    with ostler.open_image(path, format=format, readonly=True) as image:
        assert image.read(4096, len(content)) == content
        assert image.read(70_144, 1024) == content[:512] + bytes(512)


KERNEL_FILE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""A file that nobody reads with O_DIRECT."""


@pytest.mark.skipif(not KERNEL_FILE.exists(), reason="another kernel")
def test_disk_on_a_file_system_without_direct_requests_says_so() -> None:
    wanted = pytest.raises(DiskError, match=r"no O_DIRECT .*; give cache=writeback")
    config = machine(f"{KERNEL_FILE},format=raw,readonly=on,cache=none")
    with wanted, open_disks(config):
        pass


def test_disk_has_the_queues_that_were_asked_for() -> None:
    image: Any = SimpleNamespace(size_bytes=1 << 20)
    config = machine("disk,queues=4,bps=10M,iops=500")
    board = draw(config, [GuestDisk(image, image, False, 4096)])
    try:
        disk: Any = board.devices["disk0"]
        assert len(disk.device.queue_sizes) == 4
        assert disk.device.features & F_MQ
    finally:
        board.close()

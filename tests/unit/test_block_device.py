"""A virtio disk over a block device of the host: a loop device, where we may make one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtio_guest import PAYLOAD, WRITE, Guest

from ostler.block import open_image
from ostler.block.formats.raw import RawImage
from ostler.devices.virtio.blk import F_DISCARD, F_FLUSH, F_WRITE_ZEROES, VirtioBlk
from ostler.devices.virtio.device import F_EVENT_IDX, F_VERSION_1
from ostler.errors import DiskError

SIZE = 1 << 20
IN, OUT, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 4, 11, 13


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("losetup") is None or not os.access("/dev/loop-control", os.W_OK):
        pytest.skip("needs losetup and the right to use it")
    backing = tmp_path / "backing.img"
    backing.write_bytes(b"\x55" * SIZE)
    command = ["losetup", "--find", "--show", str(backing)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    path = made.stdout.strip()
    yield Path(path)
    subprocess.run(["losetup", "--detach", path], check=True)


def test_block_device_knows_its_size_and_is_locked(device: Path) -> None:
    with open_image(device) as image:
        assert isinstance(image, RawImage)
        assert (image.size_bytes, image.block_bytes) == (SIZE, 512)
        with pytest.raises(DiskError, match="in use"):
            open_image(device)


def test_block_device_reads_writes_discards_and_zeroes(device: Path) -> None:
    guest = Guest()
    with open_image(device) as image:
        assert isinstance(image, RawImage)
        guest.plug(VirtioBlk(image, guest.workers))
        guest.drive(F_VERSION_1 | F_EVENT_IDX | F_FLUSH | F_DISCARD | F_WRITE_ZEROES)
        guest.vm.memory.write(PAYLOAD, b"\xaa" * 4096)
        assert guest.request(OUT, 8, (PAYLOAD, 4096, 0)) == 0
        assert guest.request(FLUSH, 0) == 0
        guest.vm.memory.write(PAYLOAD, (64).to_bytes(8, "little") + b"\x08" + bytes(7))
        assert guest.request(DISCARD, 0, (PAYLOAD, 16, 0)) == 0
        guest.vm.memory.write(PAYLOAD, (128).to_bytes(8, "little") + b"\x08" + bytes(7))
        assert guest.request(WRITE_ZEROES, 0, (PAYLOAD, 16, 0)) == 0
        for sector, expected in ((0, 0x55), (8, 0xAA), (15, 0xAA), (64, 0), (128, 0), (136, 0x55)):
            assert guest.request(IN, sector, (PAYLOAD, 512, WRITE)) == 0
            assert guest.vm.memory.read(PAYLOAD, 512) == bytes([expected]) * 512
        guest.transport.close()

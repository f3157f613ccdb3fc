import struct

import pytest

from ostler.devices.fw_cfg import DATA, FILE_DIRECTORY, SELECTOR, FwCfg, items
from ostler.testing import FakeMemory

FILES = {"opt/b": b"second", "opt/a": b"first!!"}


@pytest.fixture
def memory() -> FakeMemory:
    return FakeMemory(64 << 10)


@pytest.fixture
def device(memory: FakeMemory) -> FwCfg:
    return FwCfg(memory, items(1 << 30, 2, FILES))


def take(device: FwCfg, key: int, length: int) -> bytes:
    device.write(SELECTOR, 2, key)
    return bytes(device.read(DATA, 1) for _ in range(length))


def dma(device: FwCfg, memory: FakeMemory, control: int, length: int, target: int) -> int:
    memory.write(0x100, struct.pack(">IIQ", control, length, target))
    device.write(4, 4, 0)
    device.write(8, 4, int.from_bytes((0x100).to_bytes(4, "big"), "little"))
    return int.from_bytes(memory.read(0x100, 4), "big")


def test_fw_cfg_signature_and_id_are_as_specified(device: FwCfg) -> None:
    assert take(device, 0, 5) == b"QEMU\0"
    assert take(device, 1, 4) == b"\x03\0\0\0"
    assert take(device, 5, 2) == b"\x02\0"


def test_fw_cfg_directory_lists_files_by_name(device: FwCfg) -> None:
    directory = take(device, FILE_DIRECTORY, 4 + 2 * 64)
    assert directory[:4] == b"\0\0\0\x02"
    size, key, _, name = struct.unpack(">IHH56s", directory[4:68])
    assert (size, name.rstrip(b"\0")) == (7, b"opt/a")
    assert take(device, key, 8) == b"first!!\0"


def test_fw_cfg_dma_reads_into_memory(device: FwCfg, memory: FakeMemory) -> None:
    assert device.read(4, 4) == int.from_bytes(b"QEMU", "little")
    assert dma(device, memory, 0x21 << 16 | 0x08 | 0x02, 6, 0x200) == 0
    assert memory.read(0x200, 6) == b"second"


@pytest.mark.parametrize("control", [0x10, 0x18])
def test_fw_cfg_dma_write_is_an_error(device: FwCfg, memory: FakeMemory, control: int) -> None:
    assert dma(device, memory, control, 4, 0x200) == 1


def test_fw_cfg_dma_to_nowhere_is_an_error(device: FwCfg, memory: FakeMemory) -> None:
    assert dma(device, memory, 0x02, 0xFFFF_FFFF, 1 << 40) == 1


def test_fw_cfg_dma_skip_moves_on(device: FwCfg, memory: FakeMemory) -> None:
    assert dma(device, memory, 0x20 << 16 | 0x08 | 0x04, 2, 0) == 0
    assert device.read(DATA, 1) == ord("r")

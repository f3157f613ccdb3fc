"""VHDX: headers, the log, and images that are damaged."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ostler.block import open_image
from ostler.block.formats.vhdx import HEADER_OFFSETS, REGION_TABLE_OFFSETS, VhdxImage
from ostler.block.formats.vhdx_checksum import crc32c
from ostler.block.source import MemorySource
from ostler.errors import DiskError

MIB = 1 << 20
LOG, BAT, METADATA = 1 * MIB, 2 * MIB, 3 * MIB
BLOCK_BYTES = 8 * MIB


def seal(content: bytearray, at: int, length: int) -> None:
    content[at + 4 : at + 8] = bytes(4)
    content[at + 4 : at + 8] = crc32c(bytes(content[at : at + length])).to_bytes(4, "little")


def qemu_io(path: Path, *commands: str) -> None:
    options = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "vhdx", *options, str(path)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image of 20 MiB whose second block is written."""
    path = tmp_path_factory.mktemp("vhdx") / "disk.vhdx"
    command = ["qemu-img", "create", "-q", "-f", "vhdx", str(path), "20M"]
    subprocess.run(command, check=True)
    qemu_io(path, "write -P 5 8M 64k")
    return path.read_bytes()


def opened(content: bytes | bytearray) -> VhdxImage:
    return VhdxImage(MemorySource(content, "disk.vhdx"))


def test_crc32c_is_the_published_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def with_log_to_replay(before: bytes, after: bytes) -> bytearray:
    """`after` as if its writer had died: the log is written, the block table not yet."""
    dirty = bytearray(after)
    dirty[BAT : BAT + MIB] = before[BAT : BAT + MIB]
    entry = max(
        (struct.unpack_from("<Q", dirty, at + 16)[0], at)
        for at in range(LOG, LOG + MIB, 4096)
        if dirty[at : at + 4] == b"loge"
    )[1]
    for number, at in enumerate(HEADER_OFFSETS):
        dirty[at + 8 : at + 16] = struct.pack("<Q", 1 << 40 | number)
        dirty[at + 48 : at + 64] = dirty[entry + 32 : entry + 48]
        seal(dirty, at, 4096)
    return dirty


@pytest.mark.parametrize("writes", [["write -P 9 0 1M"], ["write -P 1 0 64k", "write -P 2 17M 1M"]])
def test_log_not_applied_is_read_as_qemu_replays_it(
    writes: list[str], sound: bytes, tmp_path: Path
) -> None:
    path, replayed = tmp_path / "disk.vhdx", tmp_path / "replayed.vhdx"
    path.write_bytes(sound)
    qemu_io(path, *writes)
    path.write_bytes(with_log_to_replay(sound, path.read_bytes()))
    shutil.copy(path, replayed)
    # For QEMU the log is in the way of reading, until `check -r all` applies it.
    refused = subprocess.run(
        ["qemu-io", "-r", "-f", "vhdx", str(path)], input="", capture_output=True, text=True
    )
    assert "log that needs to be replayed" in refused.stderr
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", str(replayed)], check=True)
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(replayed), str(raw)], check=True)
    untouched = path.read_bytes()
    with open_image(path, readonly=True) as image:
        assert isinstance(image, VhdxImage)
        assert image.log_replayed
        assert image.read(0, image.size_bytes) == raw.read_bytes()
    assert path.read_bytes() == untouched


def test_log_entry_damaged_is_refused_by_name(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    path.write_bytes(sound)
    qemu_io(path, "write 0 64k")
    dirty = with_log_to_replay(sound, path.read_bytes())
    for at in range(LOG, LOG + MIB, 4096):
        dirty[at + 4080] ^= 1
    with pytest.raises(DiskError, match="log has a LogGuid, but no complete sequence"):
        opened(dirty)


def test_log_of_odd_length_is_refused_by_name(sound: bytes) -> None:
    # Found by fuzzing: an entry would begin in the last bytes of such a log.
    dirty = with_log_to_replay(sound, sound)
    for at in HEADER_OFFSETS:
        struct.pack_into("<I", dirty, at + 68, MIB + 2)
        seal(dirty, at, 4096)
    with pytest.raises(DiskError, match="log has 0x100002 bytes at 0x100000, not MiBs"):
        opened(dirty)


def test_header_older_or_damaged_gives_way_to_the_other(sound: bytes) -> None:
    for at in HEADER_OFFSETS:
        one = bytearray(sound)
        one[at + 100] ^= 1
        assert opened(one).read(BLOCK_BYTES, 3) == b"\5\5\5"


def test_region_table_damaged_gives_way_to_its_copy(sound: bytes) -> None:
    one = bytearray(sound)
    one[REGION_TABLE_OFFSETS[0] + 9] ^= 1
    assert opened(one).read(BLOCK_BYTES, 3) == b"\5\5\5"


def regions(change: Callable[[bytearray, int], None]) -> Callable[[bytearray], None]:
    def act(content: bytearray) -> None:
        for at in REGION_TABLE_OFFSETS:
            change(content, at)
            seal(content, at, 64 << 10)

    return act


def both_headers_gone(content: bytearray) -> None:
    for at in HEADER_OFFSETS:
        content[at] = 0


def bat_and_metadata_overlap(content: bytearray, at: int) -> None:
    content[at + 16 + 16 : at + 16 + 24] = content[at + 48 + 16 : at + 48 + 24]


def unknown_required_region(content: bytearray, at: int) -> None:
    content[at + 16] ^= 1
    content[at + 16 + 28] = 1


def item(content: bytearray, guid: str) -> int:
    """Where the metadata item is."""
    at = content.index(bytes.fromhex(guid), METADATA)
    return METADATA + int.from_bytes(content[at + 16 : at + 20], "little")


FILE_PARAMETERS, DISK_SIZE, SECTOR = "3767a1ca36fa434d", "2442a52f1bcd7648", "1dbf41816fa90947"


def poke(guid: str, value: int, length: int, at: int = 0) -> Callable[[bytearray], None]:
    def act(content: bytearray) -> None:
        where = item(content, guid) + at
        content[where : where + length] = value.to_bytes(length, "little")

    return act


def bat_entry(value: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into("<Q", content, BAT + 8, value)


DAMAGES: list[tuple[str, Callable[[bytearray], None]]] = [
    ("VHDX headers are both invalid", both_headers_gone),
    ("region table has regions that overlap", regions(bat_and_metadata_overlap)),
    ("required VHDX region .* is not supported", regions(unknown_required_region)),
    ("BlockSize is 3145728, not a power of two", poke(FILE_PARAMETERS, 3 * MIB, 4)),
    ("BlockSize is 0", poke(FILE_PARAMETERS, 0, 4)),
    (r"differencing VHDX \(HasParent\) is not supported", poke(FILE_PARAMETERS, 2, 4, at=4)),
    ("VirtualDiskSize is 18446744073709551104", poke(DISK_SIZE, (1 << 64) - 512, 8)),
    ("BAT region has 1048576 bytes for 8404991 entries", poke(DISK_SIZE, 64 << 40, 8)),
    ("logical_sector_size is 513", poke(SECTOR, 513, 4)),
    ("BAT entry of block 1 has state 4", bat_entry(4)),
    ("block 1 at 0xfffffffffff00000 is beyond", bat_entry((1 << 64) - MIB | 6)),
    ("truncated", lambda content: content.__delitem__(slice(5 * MIB, None))),
    ("truncated", lambda content: content.__delitem__(slice(2 * MIB + 4096, None))),
    ("VHDX header at 0x10000 is beyond", lambda content: content.__delitem__(slice(100, None))),
]  # fmt: skip


@pytest.mark.parametrize(("message", "damage"), DAMAGES)
def test_damage_is_an_error_that_names_the_field(
    message: str, damage: Callable[[bytearray], None], sound: bytes
) -> None:
    content = bytearray(sound)
    damage(content)
    with pytest.raises(DiskError) as caught:
        opened(content).read(0, 20 * MIB)
    assert re.search(message, str(caught.value)), caught.value

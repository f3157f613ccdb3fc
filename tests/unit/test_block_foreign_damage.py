"""VDI, VHD and VMDK images that are damaged or hostile: an error that names the field."""

from __future__ import annotations

import re
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ostler.block import open_image
from ostler.block.formats.mapped import MappedImage
from ostler.block.formats.vdi import VdiImage
from ostler.block.formats.vmdk import VmdkImage
from ostler.block.formats.vmdk_descriptor import parse_descriptor
from ostler.block.formats.vpc import VpcImage
from ostler.block.source import ByteSource, MemorySource
from ostler.errors import DiskError

MIB = 1 << 20
Damage = Callable[[bytearray], None]


@cache
def sound(format: str, *options: str) -> bytes:
    """An image of 5 MiB, or the closest geometry, with data in its third MiB."""
    with TemporaryDirectory() as directory:
        raw, path = Path(directory, "raw"), Path(directory, "image")
        raw.write_bytes(bytes(2 * MIB) + b"data" * (MIB // 4) + bytes(2 * MIB))
        chosen = [word for option in options for word in ("-o", option)]
        command = ["qemu-img", "convert", "-f", "raw", "-O", format, *chosen, str(raw), str(path)]
        subprocess.run(command, check=True)
        return path.read_bytes()


def no_files(name: str) -> ByteSource:
    raise DiskError(f"{name}: no such disk image")


def opened(format: str, content: bytes | bytearray) -> MappedImage:
    source = MemorySource(content, f"disk.{format}")
    match format:
        case "vdi":
            return VdiImage(source)
        case "vpc":
            return VpcImage(source)
        case _:
            return VmdkImage(source, no_files)


def u32(at: int, value: int, order: str = "<") -> Damage:
    return lambda content: struct.pack_into(f"{order}I", content, at, value)


def u64(at: int, value: int, order: str = "<") -> Damage:
    return lambda content: struct.pack_into(f"{order}Q", content, at, value)


def cut(at: int) -> Damage:
    return lambda content: content.__delitem__(slice(at, None))


def sealed(start: int, length: int, at: int, damage: Damage) -> Damage:
    """A damage with a checksum that is right, as VHD has it."""

    def act(content: bytearray) -> None:
        damage(content)
        content[start + at : start + at + 4] = bytes(4)
        struct.pack_into(
            ">I", content, start + at, ~sum(content[start : start + length]) & 0xFFFFFFFF
        )

    return act


def footer(damage: Damage) -> Damage:
    return sealed(0, 512, 64, damage)


def header(damage: Damage) -> Damage:
    return sealed(512, 1024, 36, damage)


GD = 0x26 * 512 - 0x11 * 512
VDI_BMAP = 0x200
VPC_BAT = 1536

DAMAGES: list[tuple[str, str, Damage]] = [
    ("vdi", "signature is 0x00000000", u32(64, 0)),
    ("vdi", "VDI version 1.2 is not supported", u32(68, 0x10002)),
    ("vdi", "VDI image_type 4 is not supported", u32(76, 4)),
    ("vdi", "block_size 0 is not supported", u32(376, 0)),
    ("vdi", "block_size 1048577 is not supported", u32(376, MIB + 1)),
    ("vdi", "blocks_in_image is 4294967295", u32(384, 0xFFFFFFFF)),
    ("vdi", r"block map .* 1073741823 entries at 0x200 ends beyond", u32(384, 0x3FFFFFFF)),
    ("vdi", "disk_size is 18446744073709551616, 5 blocks", u64(368, (1 << 64) - 1)),
    ("vdi", r"offset_bmap 0x201, not a multiple", u32(340, 0x201)),
    ("vdi", "sector_size 4096 is not supported", u32(360, 4096)),
    ("vdi", r"differencing VDI \(uuid_parent", u64(440, 1)),
    ("vdi", "block map entry 2 is 5, but there are 5 blocks", u32(VDI_BMAP + 8, 5)),
    ("vdi", "block 2 at 0x400 is beyond the 1048576 bytes", cut(MIB)),
    ("vdi", "VDI header at 0x40 is beyond", cut(100)),
    ("vpc", "footer checksum .* does not match", u32(20, 1)),
    ("vpc", "differencing VHD", footer(u32(60, 4, ">"))),
    ("vpc", "disk type is 7", footer(u32(60, 7, ">"))),
    ("vpc", r"dynamic disk header \(data_offset\) at 0xff{15}", footer(u64(16, (1 << 64) - 1))),
    ("vpc", "has no cxsparse cookie", footer(u64(16, 0, ">"))),
    ("vpc", "dynamic disk header checksum", u32(512 + 40, 1)),
    ("vpc", "block_size is 0", header(u32(512 + 32, 0, ">"))),
    ("vpc", "block_size is 1000", header(u32(512 + 32, 1000, ">"))),
    ("vpc", "max_table_entries is 1;", header(u32(512 + 28, 1, ">"))),
    ("vpc", "block allocation table .* ends beyond", header(u64(512 + 16, 1 << 60, ">"))),
    ("vpc", "block 1 at 0x1fffffdc200 is beyond", u32(VPC_BAT + 4, 0xFFFFFEE0, ">")),
    ("vpc", "VHD footer at 0x0 is beyond", cut(500)),
    ("vmdk", "VMDK version 4 is not supported", u32(4, 4)),
    ("vmdk", "grainSize or numGTEsPerGT is zero", u64(20, 0)),
    ("vmdk", "grainSize is 129 sectors", u64(20, 129)),
    ("vmdk", "grainSize is 4294967296 sectors", u64(20, 1 << 32)),
    ("vmdk", "numGTEsPerGT is 8192", u32(44, 8192)),
    ("vmdk", "capacity is 18446744073709551615 sectors", u64(12, (1 << 64) - 1)),
    ("vmdk", "grain directory .* ends beyond", u64(12, 1 << 37)),
    ("vmdk", "grain directory .* ends beyond", u64(56, 1 << 50)),
    ("vmdk", "descriptor has 2251799813685248 bytes", u64(36, 1 << 42)),
    ("vmdk", "descriptor at 0x80000000000 is beyond", u64(28, 1 << 34)),
    ("vmdk", r"footer \(gdOffset\)|no markers", u64(56, (1 << 64) - 1)),
    ("vmdk", "line end characters", u32(73, 0x0D0D0A0A)),
    ("vmdk", "compressAlgorithm 2 is not supported", lambda c: struct.pack_into("<H", c, 77, 2)),
    ("vmdk", "truncated", cut(70_000)),
]  # fmt: skip


@pytest.mark.parametrize(("format", "message", "damage"), DAMAGES)
def test_damage_is_an_error_that_names_the_field(format: str, message: str, damage: Damage) -> None:
    content = bytearray(sound(format))
    damage(content)
    tracemalloc.start()
    with pytest.raises(DiskError) as caught:
        opened(format, content).read(0, 5 * MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert re.search(message, str(caught.value)), caught.value
    assert peak < 16 * MIB, "memory as large as a claim"


def stream() -> bytearray:
    return bytearray(sound("vmdk", "subformat=streamOptimized"))


def first_grain(content: bytearray) -> int:
    """Where the marker of the grain of sector 4096 (2 MiB) is."""
    return next(
        at
        for at in range(0, len(content), 512)
        if struct.unpack_from("<Q", content, at)[0] == 4096 and content[at + 12] == 0x78
    )


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("marker of compressed grain 32 is for sector 7", lambda c, at: u64(at, 7)(c)),
        ("marker of compressed grain 32 claims 4294", lambda c, at: u32(at + 8, 0xFFFFFFFF)(c)),
        ("compressed grain 32 does not inflate", lambda c, at: u64(at + 12, 0x1234567)(c)),
        ("compressed grain 32 has 0 bytes", lambda c, at: u32(at + 8, 4)(c)),
    ],
)  # fmt: skip
def test_compressed_grain_damaged_is_an_error_that_names_it(
    message: str, damage: Callable[[bytearray, int], None]
) -> None:
    content = stream()
    damage(content, first_grain(content))
    with pytest.raises(DiskError, match=message):
        opened("vmdk", content).read(2 * MIB, MIB)


def test_compressed_grain_that_inflates_to_more_gives_the_grain_only() -> None:
    content = stream()
    at = first_grain(content)
    bomb = zlib.compress(bytes(64 * MIB), 9)
    content[at + 8 : at + 12] = len(bomb).to_bytes(4, "little")
    content[at + 12 : at + 12 + len(bomb)] = bomb
    tracemalloc.start()
    assert opened("vmdk", content).read(2 * MIB, 65536) == bytes(65536)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MIB


DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=12345678
parentCID=ffffffff
createType="monolithicFlat"

RW 8 FLAT "disk-flat.vmdk" 0
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("CID=12345678", "CID=12345678z", "CID is '12345678z', not 32 bits"),
        ('createType="monolithicFlat"', "", "has no createType"),
        ("monolithicFlat", "fullDevice", "createType 'fullDevice' is not supported"),
        ("FLAT", "SESPARSE", "extent type SESPARSE is not supported"),
        ("RW 8", "RW eight", "extent line 'RW eight .* cannot be parsed"),
        ("RW 8", "RW 0", "has no sectors"),
        ('" 0', '"', "lacks the offset"),
        ("RW 8", "NOACCESS 8", "without access"),
        ("parentCID=ffffffff", "parentCID=1", "parentFileNameHint is missing"),
    ],
)
def test_descriptor_wrong_is_an_error_that_names_the_line(old: str, new: str, message: str) -> None:
    with pytest.raises(DiskError, match=message):
        parse_descriptor(MemorySource(b""), DESCRIPTOR.replace(old, new))


def write_flat(directory: Path, text: str = DESCRIPTOR) -> Path:
    (directory / "disk-flat.vmdk").write_bytes(b"flat".ljust(4096, b"."))
    path = directory / "disk.vmdk"
    path.write_text(text)
    return path


def test_flat_extent_shorter_than_described_is_refused(tmp_path: Path) -> None:
    path = write_flat(tmp_path, DESCRIPTOR.replace("RW 8", "RW 9"))
    with pytest.raises(DiskError, match="claims 4608 bytes at 0x0, the file has 4096"):
        open_image(path, readonly=True)


def test_extent_missing_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = write_flat(tmp_path, DESCRIPTOR.replace("disk-flat", "lost"))
    with pytest.raises(DiskError, match=r"lost\.vmdk: no such disk image"):
        open_image(path, readonly=True)


def test_parent_that_leads_back_is_refused(tmp_path: Path) -> None:
    text = DESCRIPTOR.replace(
        "parentCID=ffffffff", 'parentCID=12345678\nparentFileNameHint="disk.vmdk"'
    )
    path = write_flat(tmp_path, text)
    with pytest.raises(DiskError, match="leads in a circle"):
        open_image(path, readonly=True)


def test_parent_changed_since_is_refused(tmp_path: Path) -> None:
    path = write_flat(tmp_path)
    top = tmp_path / "top.vmdk"
    top.write_text(
        DESCRIPTOR.replace("parentCID=ffffffff", 'parentCID=1\nparentFileNameHint="disk.vmdk"')
    )
    with pytest.raises(DiskError, match=r"parentCID is 1, .*disk\.vmdk has 12345678"):
        open_image(top, readonly=True)
    with open_image(top, readonly=True, backing=False) as image:
        assert image.read(0, 4) == b"flat"
    with open_image(path, readonly=True) as image:
        assert image.read(0, 4) == b"flat"


@pytest.mark.parametrize("format", ["vdi", "vpc", "vmdk"])
def test_writing_is_refused_with_what_to_do(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"disk.{format}"
    path.write_bytes(sound(format))
    with pytest.raises(DiskError, match=r"can be read, not written.*convert"):
        open_image(path)

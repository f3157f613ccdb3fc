"""Encrypted qcow2 images against QEMU, both ways."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import qemu_luks

from ostler.block import create_image, open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.cli import invoke
from ostler.errors import DiskError

MIB = 1 << 20
SIZE = 8 * MIB
SECRET = b"open sesame"


class Encrypted:
    """An encrypted image that qemu-img made, and QEMU's view of it."""

    def __init__(self, directory: Path, options: str = "") -> None:
        self.place_in(directory)
        chosen = f"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=30{options}"
        command = ("qemu-img", "create", "-q", "-f", "qcow2", *self.secret, "-o", chosen)
        qemu_luks.create((*command, self.path, str(SIZE)))

    def place_in(self, directory: Path) -> None:
        self.path, self.key_file = directory / "disk.qcow2", directory / "key"
        self.key_file.write_bytes(SECRET)
        self.secret = ("--object", f"secret,id=s,file={self.key_file}")
        self.place = f"driver=qcow2,encrypt.key-secret=s,file.filename={self.path}"

    def content(self) -> bytes:
        raw = self.path.with_suffix(".raw")
        command = ["qemu-img", "convert", *self.secret, "--image-opts", self.place, "-O", "raw"]
        subprocess.run([*command, str(raw)], check=True)
        return raw.read_bytes()

    def check(self) -> None:
        command = ["qemu-img", "check", "-q", *self.secret, "--image-opts", self.place]
        subprocess.run(command, check=True)

    def io(self, *commands: str) -> None:
        words = [word for command in commands for word in ("-c", command)]
        command = ["qemu-io", *self.secret, *words, "--image-opts", self.place]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Encrypted:
    return Encrypted(tmp_path_factory.mktemp("qcow2"))


def test_image_of_qemu_is_read_written_and_checked_both_ways(made: Encrypted) -> None:
    made.io("write -P 7 0 1M", "write -P 9 3000k 100k", "write -z 5M 64k")
    truth, dice = bytearray(made.content()), random.Random(6)
    with open_image(made.path, secret=SECRET) as image:
        assert isinstance(image, Qcow2Image)
        assert image.read(0, SIZE) == truth
        for _ in range(150):
            offset = dice.randrange(SIZE)
            length = min(dice.choice((1, 512, 4096, 70_000, 300_000)), SIZE - offset)
            piece = bytes(length)
            if dice.random() < 0.7:
                piece = dice.randbytes(length)
                image.write(offset, piece)
            else:
                image.write_zeroes(offset, length, unmap=dice.random() < 0.5)
            truth[offset : offset + length] = piece
        assert image.read(0, SIZE) == truth
        image.snapshot("before")
        image.write(100, b"marker-in-clear" * 100)
        truth[100:1600] = b"marker-in-clear" * 100
    made.check()
    assert made.content() == truth
    assert b"marker-in-clear" not in made.path.read_bytes()
    with open_image(made.path, secret=SECRET) as image:
        assert isinstance(image, Qcow2Image)
        # The LUKS header's clusters are in use, whatever no table says of them.
        result = image.check(repair="all")
        assert (result.leaks, result.corruptions) == (0, 0)
        assert image.read(0, SIZE) == truth


def test_image_without_its_passphrase_stays_closed(made: Encrypted) -> None:
    with pytest.raises(DiskError, match="needs a passphrase; in Python give secret="):
        open_image(made.path, readonly=True)
    with pytest.raises(DiskError, match="opens no key slot"):
        open_image(made.path, readonly=True, secret=b"wrong")


def test_encryption_damaged_or_broken_is_refused_by_name(made: Encrypted, tmp_path: Path) -> None:
    path, content = tmp_path / "disk.qcow2", bytearray(made.path.read_bytes())
    at = content.index((0x0537BE77).to_bytes(4)) + 8
    for offset, length in ((1, 4096), (0, 1 << 40), (1 << 60, 65536)):
        struct.pack_into(">QQ", content, at, offset, length)
        path.write_bytes(content)
        with pytest.raises(DiskError, match=r"encryption header|LUKS"):
            open_image(path, readonly=True, secret=SECRET)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 4096, "cipher_alg": "twofish-256", "hash_alg": "sha512"},
        {"cluster_size": 2 * MIB, "cipher_alg": "aes-128", "cipher_mode": "cbc"},
    ],
)
def test_new_image_is_sound_and_read_by_qemu(tmp_path: Path, options: dict[str, Any]) -> None:
    made = Encrypted.__new__(Encrypted)
    made.place_in(tmp_path)
    create_image(made.path, SIZE, encryption="luks", secret=SECRET, iter_time=30, **options)
    made.check()
    assert made.content() == bytes(SIZE)
    with open_image(made.path, secret=SECRET) as image:
        assert isinstance(image, Qcow2Image)
        image.write(100, b"marker-in-clear" * 1000)
        image.snapshot("before")
        image.write(3 * MIB, b"marker-in-clear" * 9000)
        assert image.check().corruptions == image.check().leaks == 0
    made.check()
    content = made.content()
    assert content[100:15100] == b"marker-in-clear" * 1000
    assert content[3 * MIB : 3 * MIB + 135_000] == b"marker-in-clear" * 9000
    assert b"marker-in-clear" not in made.path.read_bytes()
    made.io("write -P 7 0 1M")
    with open_image(made.path, secret=SECRET, readonly=True) as image:
        assert image.read(0, MIB) == b"\x07" * MIB
    with pytest.raises(DiskError, match="no key slot"):
        open_image(made.path, secret=b"wrong")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"encryption": "luks"}, "needs a passphrase"),
        ({"encryption": "luks", "secret": SECRET, "compat": "0.10"}, "not in version 2"),
        ({"encryption": "luks", "secret": SECRET, "preallocation": "full"}, "not preallocated"),
        ({"secret": SECRET}, "add encryption=luks"),
    ],
)
def test_image_that_cannot_be_encrypted_so_is_refused(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(DiskError, match=why):
        create_image(tmp_path / "disk", SIZE, **options)


def test_command_line_of_qemu_makes_and_fills_an_encrypted_image(tmp_path: Path) -> None:
    made = Encrypted.__new__(Encrypted)
    made.place_in(tmp_path)
    raw = tmp_path / "in.raw"
    raw.write_bytes(random.Random(4).randbytes(3 * MIB))
    chosen = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=30"
    command = ["image", "convert", "-O", "qcow2", *made.secret, "-o", chosen, raw, made.path]
    assert invoke(list(map(str, command))) == 0
    made.check()
    assert made.content() == raw.read_bytes()
    assert invoke(list(map(str, [*command[:2], "-c", *command[2:]]))) == 2

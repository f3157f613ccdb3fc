"""Encrypted qcow2 images against QEMU, both ways."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from ostler.block import open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.errors import DiskError

MIB = 1 << 20
SIZE = 8 * MIB
SECRET = b"open sesame"


class Encrypted:
    """An encrypted image that qemu-img made, and QEMU's view of it."""

    def __init__(self, directory: Path, options: str = "") -> None:
        self.path, self.key_file = directory / "disk.qcow2", directory / "key"
        self.key_file.write_bytes(SECRET)
        self.secret = ("--object", f"secret,id=s,file={self.key_file}")
        self.place = f"driver=qcow2,encrypt.key-secret=s,file.filename={self.path}"
        chosen = f"encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=30{options}"
        command = ("qemu-img", "create", "-q", "-f", "qcow2", *self.secret, "-o", chosen)
        for _ in range(20):
            # It refuses now and then, when its clock says that hashing took no time.
            done = subprocess.run([*command, self.path, str(SIZE)], capture_output=True, text=True)
            if done.returncode == 0:
                return
            assert "accurate CPU usage" in done.stderr, done.stderr
        pytest.fail("qemu-img does not make the image")

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
    struct.pack_into(">I", content, 32, 1)
    path.write_bytes(content)
    with pytest.raises(DiskError, match="own AES encryption, which is broken, is not supported"):
        open_image(path, readonly=True, secret=SECRET)
    struct.pack_into(">I", content, 32, 2)
    at = content.index((0x0537BE77).to_bytes(4)) + 8
    for offset, length in ((1, 4096), (0, 1 << 40), (1 << 60, 65536)):
        struct.pack_into(">QQ", content, at, offset, length)
        path.write_bytes(content)
        with pytest.raises(DiskError, match=r"encryption header|LUKS"):
            open_image(path, readonly=True, secret=SECRET)

"""Encrypted images on the command line: passphrases come from files, and are shown nowhere."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ostler.cli import invoke
from ostler.config import DiskConfig, MachineConfig
from ostler.machine.disks import open_disks

SECRET = b"open sesame"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    return path


def image(*arguments: object) -> int:
    return invoke(["image", *map(str, arguments)])


def create(path: Path, key_file: Path) -> None:
    options = f"key_file={key_file},iter_time=10,cipher_alg=aes-128"
    assert image("create", "-q", "-f", "luks", "-o", options, path, "1M") == 0


def test_image_is_created_converted_compared_and_shown(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, luks, back = (tmp_path / name for name in ("disk.raw", "disk.luks", "back.raw"))
    raw.write_bytes(b"content." * (1 << 17))
    secret = ("--object", f"secret,id=s0,file={key_file}")
    options = "key_secret=s0,iter_time=10"
    assert image("convert", "-f", "raw", "-O", "luks", *secret, "-o", options, raw, luks) == 0
    assert b"content." not in luks.read_bytes()
    qemu = ("--image-opts", f"driver=luks,key-secret=s0,file.filename={luks}")
    command = ["qemu-img", "convert", *secret, *qemu, "-O", "raw", str(back)]
    subprocess.run(command, check=True)
    assert back.read_bytes() == raw.read_bytes()
    back.unlink()
    assert image("convert", "--key-file", key_file, "-O", "raw", luks, back) == 0
    assert back.read_bytes() == raw.read_bytes()
    assert image("compare", "--key-file", key_file, "-F", "raw", luks, raw) == 0
    assert image("resize", "--key-file", key_file, luks, "2M") == 0
    capsys.readouterr()
    assert image("info", "--key-file", key_file, "--output", "json", luks) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["virtual-size"] == 2 << 20
    assert facts["format-specific"]["data"]["cipher-alg"] == "aes-256"


def test_passphrase_is_not_taken_from_the_command_line_nor_printed(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "disk.luks"
    for wrong in ("-o", "secret=hunter2"), ("--object", "secret,id=a,data=hunter2"):
        assert image("create", "-f", "luks", *wrong, path, "1M") == 2
    assert "hunter2" not in capsys.readouterr().err
    options = f"key_file={key_file},iter_time=10"
    assert image("create", "-f", "luks", "-o", options, path, "1M") == 0
    shown = capsys.readouterr().out
    assert "Formatting" in shown
    assert "sesame" not in shown


def test_passphrase_missing_or_wrong_is_one_line_with_the_cure(
    tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = tmp_path / "disk.luks", tmp_path / "other"
    create(path, key_file)
    other.write_bytes(b"other")
    assert image("map", path) == 2
    assert "needs a passphrase" in capsys.readouterr().err
    assert image("map", "--key-file", other, path) == 2
    assert "opens no key slot" in capsys.readouterr().err
    assert image("create", "-f", "luks", "-o", "key_secret=s1", path, "1M") == 2
    assert "no such secret; add --object" in capsys.readouterr().err
    assert image("create", "-f", "luks", path, "1M") == 2
    assert "passphrase" in capsys.readouterr().err


@pytest.mark.parametrize("more", ["", ",overlay=on"])
def test_guests_disk_is_opened_with_its_key_file(more: str, tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "disk.luks"
    create(path, key_file)
    disk = DiskConfig.parse(f"{path},key_file={key_file}{more}")
    config = MachineConfig(kernel=Path("vmlinuz"), disks=(disk,))
    with open_disks(config) as (opened,):
        opened.live.image.write(0, b"guest")
        assert opened.live.image.read(0, 5) == b"guest"
        assert opened.size_bytes == 1 << 20

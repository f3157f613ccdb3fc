"""Encrypted images on the command line: passphrases come from files, and are shown nowhere."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from qcow2_oracle import needs_qemu

from ostler.block import open_image
from ostler.block.data_path import disk_of
from ostler.block.image import Opening, open_with
from ostler.cli import invoke
from ostler.cli.image.info import describe
from ostler.config import DiskConfig, MachineConfig
from ostler.errors import DiskError
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
    assert image("check", path) == 1
    assert "needs a passphrase" in capsys.readouterr().err
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


VERBS = [
    "check {disk}",
    "snapshot -c one {disk}",
    "snapshot -l {disk}",
    "map --output json {disk}",
    "measure -O qcow2 {disk}",
    "amend -o lazy_refcounts=on {disk}",
    "bitmap --add {disk} since",
    "bench -c 4 {disk}",
    "rebase -b {base} -F qcow2 {over}",
    "rebase -b {other} -F qcow2 {over}",
    "commit {over}",
    "dd if={disk} of={copy} bs=64k count=2",
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_opens_an_encrypted_qcow2_image_with_its_key_file(
    verb: str, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {name: tmp_path / name for name in ("disk", "base", "other", "over", "copy")}
    chosen = f"encrypt.format=luks,encrypt.key_file={key_file},encrypt.iter-time=10"
    for name in ("disk", "base", "other"):
        assert image("create", "-q", "-o", chosen, names[name], "1M") == 0
    behind = ("-b", names["base"], "-F", "qcow2")
    # What is behind is looked at without its passphrase.
    assert image("create", "-q", "-o", chosen, *behind, names["over"]) == 0
    with open_image(names["disk"], secret=SECRET) as disk:
        disk.write(0, b"content." * 8192)
    verb, *words = verb.format(**names).split()
    assert image(verb, *words) == (1 if verb == "check" else 2)
    assert "needs a passphrase" in capsys.readouterr().err
    assert image(verb, "--key-file", key_file, *words) == 0
    if verb == "dd":
        assert names["copy"].read_bytes() == b"content." * 8192 + bytes(65536)


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_info_needs_no_passphrase_and_content_does_not_read_without(
    format: str, tmp_path: Path, key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, options = tmp_path / "disk", f"key_file={key_file},iter_time=10"
    more = ",encryption=luks" if format == "qcow2" else ""
    assert image("create", "-q", "-f", format, "-o", options + more, path, "1M") == 0
    capsys.readouterr()
    assert image("info", "--output", "json", path) == 0
    facts = json.loads(capsys.readouterr().out)
    assert image("info", "--key-file", key_file, "--output", "json", path) == 0
    assert json.loads(capsys.readouterr().out) == facts
    assert (facts["virtual-size"], facts["format"]) == (1 << 20, format)
    assert facts.get("encrypted") is True
    how = Opening(readonly=True, keyless=True)
    with open_with(str(path), None, how) as locked:
        with pytest.raises(DiskError, match="needs a passphrase"):
            locked.read(0, 512)
        with pytest.raises(DiskError, match="needs a passphrase"):
            disk_of(locked)
    with pytest.raises(DiskError, match="needs a passphrase"):
        open_with(str(path), None, how._replace(readonly=False))


@needs_qemu
def test_info_shows_the_encryption_that_qemu_shows(key_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    chosen = f"encrypt.format=luks,encrypt.key_file={key_file},encrypt.iter-time=10"
    assert image("create", "-q", "-o", chosen, path, "1M") == 0
    theirs = subprocess.run(
        ["qemu-img", "info", "--output=json", path], capture_output=True, check=True
    )
    with open_image(path, secret=SECRET, readonly=True) as opened:
        ours = describe(opened)
    wanted = json.loads(theirs.stdout)["format-specific"]["data"]["encrypt"]
    assert ours["format-specific"]["data"]["encrypt"] == wanted

"""qcow2's own AES encryption: images that qemu-img made are read, and not written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ostler.block import open_image
from ostler.cli import invoke
from ostler.errors import DiskError

MIB = 1 << 20
SIZE = 8 * MIB
WRITES = ("write -P 0x11 0 64k", "write -P 0x22 1048064 3M", "write -P 0x33 7340544 1024")


class Legacy:
    """An image that qemu-img made, and QEMU's view of it."""

    def __init__(self, directory: Path, secret: bytes, options: str = "") -> None:
        self.path, self.key_file = directory / "disk.qcow2", directory / "key"
        self.secret = secret
        self.key_file.write_bytes(secret)
        self.object = ("--object", f"secret,id=s,file={self.key_file}")
        chosen = f"encrypt.format=aes,encrypt.key-secret=s{options}"
        command = ["qemu-img", "create", "-q", "-f", "qcow2", *self.object, "-o", chosen]
        subprocess.run([*command, self.path, str(SIZE)], check=True)

    def place(self, path: Path) -> str:
        return f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"

    def io(self, *commands: str) -> None:
        words = [word for command in commands for word in ("-c", command)]
        command = ["qemu-io", *self.object, *words, "--image-opts", self.place(self.path)]
        subprocess.run(command, check=True, capture_output=True)

    def content(self, *options: str) -> bytes:
        raw = self.path.with_suffix(".raw")
        command = ["qemu-img", "convert", *self.object, *options, "--image-opts"]
        subprocess.run([*command, self.place(self.path), "-O", "raw", raw], check=True)
        return raw.read_bytes()


@pytest.mark.parametrize("secret", [b"short", b"sixteen bytes ab", b"more than sixteen bytes"])
@pytest.mark.parametrize("options", ["", ",compat=0.10,cluster_size=512", ",cluster_size=2M"])
def test_image_of_qemu_reads_as_qemu_reads_it(tmp_path: Path, secret: bytes, options: str) -> None:
    made = Legacy(tmp_path, secret, options)
    made.io(*WRITES)
    wanted = made.content()
    assert wanted[1048064:1048066] == b"\x22\x22"
    with open_image(made.path, readonly=True, secret=secret) as image:
        assert image.read(0, SIZE) == wanted
        assert image.read(1047900, 1000) == wanted[1047900:1048900]
    target = tmp_path / "out.raw"
    assert invoke(["image", "convert", "--key-file", str(made.key_file), str(made.path),
                   str(target)]) == 0  # fmt: skip
    assert target.read_bytes() == wanted


def test_snapshot_and_overlay_of_such_an_image_are_read(tmp_path: Path) -> None:
    made = Legacy(tmp_path, b"open sesame")
    made.io(*WRITES)
    command = ["qemu-img", "snapshot", "-c", "before", *made.object, "--image-opts"]
    subprocess.run([*command, made.place(made.path)], check=True)
    before = made.content()
    made.io("write -P 0x44 0 5M")
    after = made.content()
    assert before != after
    overlay, target = tmp_path / "overlay.qcow2", tmp_path / "out.raw"
    assert invoke(["image", "create", "-q", "-b", str(made.path), "-F", "qcow2", str(overlay)]) == 0
    with open_image(overlay, secret=made.secret) as image:
        image.write(100, b"new")
        assert image.read(0, SIZE) == after[:100] + b"new" + after[103:]
    assert invoke(["image", "convert", "--key-file", str(made.key_file), "-l", "before",
                   str(made.path), str(target)]) == 0  # fmt: skip
    assert target.read_bytes() == before


def test_hole_that_was_preallocated_is_not_taken_for_zeroes(tmp_path: Path) -> None:
    made = Legacy(tmp_path, b"open sesame", ",preallocation=metadata")
    made.io("write -P 0x11 1M 64k")
    wanted = made.content()
    with open_image(made.path, readonly=True, secret=made.secret) as image:
        assert image.read(0, SIZE) == wanted
    target = tmp_path / "out.raw"
    assert invoke(["image", "convert", "--key-file", str(made.key_file), str(made.path),
                   str(target)]) == 0  # fmt: skip
    assert target.read_bytes() == wanted


def test_map_does_not_look_below_what_is_encrypted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Legacy(tmp_path, b"open sesame", ",preallocation=metadata")
    made.io("write -P 0x11 1M 64k")
    command = ["qemu-img", "map", "--output", "json", *made.object, "--image-opts"]
    said = subprocess.run([*command, made.place(made.path)], check=True, capture_output=True)
    assert invoke(["image", "map", "--output", "json", "--key-file", str(made.key_file),
                   str(made.path)]) == 0  # fmt: skip
    ours = json.loads(capsys.readouterr().out)
    # qemu-img 7.2 does not say it yet.
    assert not any(extent.pop("compressed") for extent in ours)
    assert ours == json.loads(said.stdout)
    assert all(extent["data"] for extent in ours)


def test_writing_is_refused_and_facts_need_no_passphrase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Legacy(tmp_path, b"open sesame")
    with pytest.raises(DiskError, match="is broken, and only read; convert the image"):
        open_image(made.path, secret=made.secret)
    with pytest.raises(DiskError, match="needs a passphrase"):
        open_image(made.path, readonly=True)
    assert invoke(["image", "info", str(made.path)]) == 0
    assert "aes" in capsys.readouterr().out

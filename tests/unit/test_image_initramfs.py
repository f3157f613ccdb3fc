"""The initramfs builder, its compressions and its command line."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner

from ostler.cli.image import app
from ostler.errors import ConfigError
from ostler.image import COMPRESSIONS, Initramfs, ModuleTree, compress


def contents(data: bytes) -> list[str]:
    done = subprocess.run(["cpio", "--quiet", "-t"], input=data, capture_output=True, check=True)
    return done.stdout.decode().splitlines()


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    root = tmp_path / "6.1.0-test"
    (root / "kernel").mkdir(parents=True)
    for name in ("core", "disk"):
        (root / f"kernel/{name}.ko").write_bytes(name.encode())
    (root / "modules.dep").write_text("kernel/core.ko:\nkernel/disk.ko: kernel/core.ko\n")
    return root


def test_image_with_modules_lists_their_order(modules: Path) -> None:
    image = Initramfs()
    added = image.add_modules(ModuleTree(modules), ["disk"])
    data = image.to_bytes("none")
    assert added == [f"/lib/modules/6.1.0-test/kernel/{name}.ko" for name in ("core", "disk")]
    assert "\n".join(added).encode() in data
    assert "etc/modules.order" in contents(data)


def test_image_begins_with_console_and_null() -> None:
    assert contents(Initramfs().to_bytes("none")) == ["dev", "dev/console", "dev/null"]


@pytest.mark.parametrize("how", ["gzip", "zstd", "xz", "none"])
def test_compress_then_unpack_gives_the_bytes_back(how: str) -> None:
    unpackers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "zstd": zstandard.ZstdDecompressor().decompress,
        "xz": lzma.decompress,
        "none": bytes,
    }
    data = bytes(range(256)) * 1000
    assert unpackers[how](compress(data, how)) == data
    assert compress(data, how) == compress(data, how)


def test_compress_by_lz4_is_read_by_the_lz4_tool() -> None:
    tool = shutil.which("lz4")
    assert tool is not None, "the lz4 tool is missing: apt-get install lz4"
    data = bytes(range(256)) * 40_000
    done = subprocess.run([tool, "-dc"], input=compress(data, "lz4"), capture_output=True)
    assert done.stdout == data


def test_compress_by_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=", ".join(COMPRESSIONS)):
        compress(b"", "bzip3")


def test_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(ConfigError):
        Initramfs().write(target)
    assert list(tmp_path.iterdir()) == [target]


def test_command_with_everything_writes_the_image(tmp_path: Path, modules: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/motd").write_text("hi")
    init = tmp_path / "start.sh"
    init.write_text("#!/bin/sh\n")
    out = tmp_path / "initrd"
    result = CliRunner().invoke(
        app,
        [
            "initramfs", "--dir", str(tmp_path / "root"), "--init", str(init),
            "--file", f"{init}:/bin/tool", "--modules", "disk",
            "--kernel-modules", str(modules), "--compress", "zstd", "-o", str(out),
        ],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0
    found = contents(zstandard.ZstdDecompressor().decompress(out.read_bytes()))
    assert {"init", "bin/tool", "etc/motd", "etc/modules.order"} <= set(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--file", "nothing"], "SRC:DST"),
        (["--modules", "disk"], "--kernel-modules"),
        (["--compress", "rar"], "unknown"),
        (["--init", "/nowhere/at/all"], "No such file"),
    ],
)
def test_command_with_bad_options_says_the_cure(
    tmp_path: Path, options: list[str], message: str
) -> None:
    out = tmp_path / "initrd"
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["initramfs", *options, "-o", str(out)], catch_exceptions=False)
    assert not out.exists()

"""The initramfs builder, its compressions and its command line."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner

from ostler.cli import invoke
from ostler.cli.image import build_app
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
        build_app(),
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


def dynamic(loader: str) -> bytes:
    """A 64-bit ELF file that names `loader` as its interpreter, as PT_INTERP does."""
    name = loader.encode() + b"\0"
    header = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    program = struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(name), len(name), 1)
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + header + program + name


STATIC = b"\x7fELF\x02\x01\x01".ljust(64, b"\0")


@pytest.mark.parametrize(
    ("files", "links", "said"),
    [
        ({"/init": b"#!/bin/sh\n"}, {}, "/init is started by /bin/sh, which is not in the image"),
        ({"/init": b"#!/bin/sh -x\n", "/bin/sh": STATIC}, {}, None),
        ({"/init": b"#! /bin/busybox sh\n", "/bin/busybox": STATIC}, {}, None),
        ({"/init": b"#!/bin/sh\n", "/bin/dash": STATIC}, {"/bin/sh": "dash"}, None),
        ({"/init": b"#!/bin/sh\n", "/usr/bin/sh": STATIC}, {"/bin": "usr/bin"}, None),
        ({"/init": b"#!/bin/sh\n", "/usr/bin/sh": STATIC}, {"/bin": "/usr/./bin/"}, None),
        ({"/init": b"#!/bin/sh\n", "/dash": STATIC}, {"/bin/sh": "../dash"}, None),
        ({"/init": b"#!/bin/sh\n"}, {"/bin/sh": "/bin/sh"}, "/init is started by /bin/sh"),
        ({"/init": b"#!/bin/sh\n"}, {"/bin/sh": "dash"}, "/init is started by /bin/sh"),
        (
            {"/init": b"#!/bin/sh\n", "/bin/sh": dynamic("/lib64/ld.so")},
            {},
            "/bin/sh is started by /lib64/ld.so, which is not in the image; add it and the lib",
        ),
        ({"/init": dynamic("/lib64/ld.so"), "/lib64/ld.so": STATIC}, {}, None),
        ({"/init": dynamic("/lib64/ld.so")[:100]}, {}, None),
        ({"/init": b"echo hello\n"}, {}, "/init is neither a program nor a script that begins"),
        ({"/init": b"#!\n"}, {}, None),
        ({"/bin/sh": b"whatever"}, {}, None),
        ({"/real": b"#!/bin/sh\n"}, {"/init": "/real"}, "/init is started by /bin/sh"),
    ],
)
def test_image_whose_init_linux_cannot_start_says_what_is_missing(
    files: dict[str, bytes], links: dict[str, str], said: str | None
) -> None:
    image = Initramfs()
    for name, target in links.items():
        image.archive.add_symlink(name, target)
    for name, content in files.items():
        image.archive.add_bytes(name, content, mode=0o755)
    problem = image.problem()
    assert problem is None if said is None else problem is not None and said in problem
    assert contents(image.to_bytes("none")), "looking has not moved where the next entry goes"


def test_image_of_this_host_s_shell_without_its_loader_says_so() -> None:
    image = Initramfs()
    image.archive.add_bytes("/init", b"#!/bin/sh\n", mode=0o755)
    image.archive.add_file("/bin/sh", Path("/bin/sh"))
    problem = image.problem()
    assert problem is not None
    assert "/bin/sh is started by /lib64/ld-linux-x86-64.so.2, which is not" in problem


def test_command_whose_init_cannot_start_warns_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init, out = tmp_path / "start.sh", tmp_path / "initrd"
    init.write_text("#!/bin/sh\n")
    assert invoke(["image", "initramfs", "--init", str(init), "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"ostler: warning: {out}: /init is started by /bin/sh")
    assert said.count("\n") == 1
    assert out.exists()


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
        CliRunner().invoke(
            build_app(), ["initramfs", *options, "-o", str(out)], catch_exceptions=False
        )
    assert not out.exists()

"""The cpio writer, held against the format by hand and against the `cpio` tool."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ostler.errors import ConfigError
from ostler.image import Archive
from ostler.image.cpio import HEADER_BYTES

Fill = Callable[[Archive], None]


def build(fill: Fill, mtime: int = 0) -> bytes:
    out = io.BytesIO()
    archive = Archive(out, mtime=mtime)
    fill(archive)
    archive.close()
    return out.getvalue()


def listing(data: bytes, *options: str) -> list[str]:
    tool = shutil.which("cpio")
    assert tool is not None, "the cpio tool is missing: apt-get install cpio"
    done = subprocess.run(
        [tool, "--quiet", "-t", *options], input=data, capture_output=True, check=True
    )
    assert done.stderr == b""
    return done.stdout.decode().splitlines()


def test_header_of_a_file_has_the_fields_of_the_format() -> None:
    data = build(lambda a: a.add_bytes("/a", b"xyz", mode=0o640), mtime=9)
    fields = [int(data[at : at + 8], 16) for at in range(6, HEADER_BYTES, 8)]
    assert data[:6] == b"070701"
    inode, mode, uid, gid, links, mtime, size = fields[:7]
    assert (inode, mode, uid, gid, links, mtime, size) == (1, 0o100640, 0, 0, 1, 9, 3)
    assert fields[11:] == [2, 0]
    assert data[110:112] == b"a\0"
    assert data[112:116] == b"xyz\0"


def test_archive_with_every_kind_lists_in_the_cpio_tool() -> None:
    def fill(archive: Archive) -> None:
        archive.add_directory("dev")
        archive.add_node("dev/console", "char", 5, 1)
        archive.add_node("dev/vda", "block", 254, 0, mode=0o660)
        archive.add_bytes("bin/sh", b"#!", mode=0o755)
        archive.add_symlink("/bin/ash", "sh")

    lines = [line.split() for line in listing(build(fill), "-v")]
    assert [line[0] for line in lines] == [
        "drwxr-xr-x", "crw-------", "brw-rw----", "drwxr-xr-x", "-rwxr-xr-x", "lrwxrwxrwx",
    ]  # fmt: skip
    assert lines[1][4:6] == ["5,", "1"]
    assert lines[-1][-3:] == ["bin/ash", "->", "sh"]


def test_archive_unpacked_by_the_cpio_tool_gives_the_tree_back(tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/data").write_bytes(os.urandom(3_000_001))
    (source / "empty").write_bytes(b"")
    (source / "link").symlink_to("deep/er")
    (source / "deep/er/data").chmod(0o751)
    target = tmp_path / "out"
    target.mkdir()
    data = build(lambda a: a.add_tree(source))
    subprocess.run(["cpio", "--quiet", "-idm"], input=data, cwd=target, check=True)
    assert (target / "deep/er/data").read_bytes() == (source / "deep/er/data").read_bytes()
    assert stat.S_IMODE((target / "deep/er/data").stat().st_mode) == 0o751
    assert (target / "link").readlink() == Path("deep/er")
    assert (target / "empty").stat().st_size == 0
    assert (target / "empty").stat().st_mtime == 0


def test_same_tree_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).write_text(name)
    first = build(lambda a: a.add_tree(tmp_path))
    os.utime(tmp_path / "a", (1, 1))
    assert build(lambda a: a.add_tree(tmp_path)) == first


@pytest.mark.parametrize("length", [1, 2, 3, 4, 254, 255])
def test_name_of_any_length_is_padded_to_four_bytes(length: int) -> None:
    name = "n" * length
    assert listing(build(lambda a: a.add_bytes(name, b"1"))) == [name]


def test_name_of_4094_bytes_is_written_and_one_more_refused() -> None:
    longest = "/".join(["d" * 63] * 64)[:4094]
    data = build(lambda a: a.add_bytes(longest, b""))
    assert longest.encode() in data
    with pytest.raises(ConfigError, match="4094 are allowed"):
        build(lambda a: a.add_bytes(longest + "x", b""))


def test_name_in_utf8_and_with_a_space_comes_back() -> None:
    assert b"caf\xc3\xa9 au lait\0" in build(lambda a: a.add_bytes("café au lait", b""))


@pytest.mark.parametrize("name", ["../etc/passwd", "a/../../b", "a\0b"])
def test_name_that_leaves_the_root_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="plain path"):
        build(lambda a: a.add_bytes(name, b""))


def test_name_added_twice_is_refused() -> None:
    archive = Archive(io.BytesIO())
    archive.add_bytes("/x", b"")
    with pytest.raises(ConfigError, match="two entries"):
        archive.add_bytes("x", b"")


def test_directory_added_twice_is_there_once() -> None:
    def fill(archive: Archive) -> None:
        archive.add_directory("/d")
        archive.add_directory("d/")

    assert listing(build(fill)) == ["d"]


def test_file_over_4_gib_is_refused_before_it_is_read(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(ConfigError, match="4 GiB"):
        build(lambda a: a.add_file("big", big))


def test_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        build(lambda a: a.add_file("x", tmp_path / "none"))


def test_tree_with_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe"):
        build(lambda a: a.add_tree(tmp_path))


def test_archive_ends_on_a_multiple_of_512_bytes() -> None:
    assert len(build(lambda a: a.add_bytes("a", b"1"))) % 512 == 0

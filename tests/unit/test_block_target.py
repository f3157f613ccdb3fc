"""Where a copy is written before it has its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ostler.block import open_image
from ostler.block.jobs.convert import convert
from ostler.block.registry import open_file
from ostler.errors import DiskError

CONTENT = bytes(range(256)) * 256


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(CONTENT)
    return path


def copy(source: Path, target: Path) -> None:
    with open_image(source, readonly=True, format="raw") as image:
        convert([image], target, format="raw").wait()


@pytest.mark.parametrize("is_there", [True, False])
def test_link_at_the_place_of_the_copy_leads_nowhere(
    tmp_path: Path, source: Path, is_there: bool
) -> None:
    target, part, other = tmp_path / "target", tmp_path / "target.part", tmp_path / "other"
    other.write_bytes(b"precious")
    other.chmod(0o640)
    if is_there:
        target.write_bytes(b"before")
        target.chmod(0o666)
    part.symlink_to(other)
    with pytest.raises(DiskError, match=r"target\.part: in the way.*; remove it"):
        copy(source, target)
    assert other.read_bytes() == b"precious"
    assert other.stat().st_mode & 0o777 == 0o640
    assert part.is_symlink()
    assert target.exists() == is_there


@pytest.mark.parametrize("is_there", [True, False])
def test_copy_that_another_writes_is_left_to_it(
    tmp_path: Path, source: Path, is_there: bool
) -> None:
    target, part = tmp_path / "target", tmp_path / "target.part"
    part.write_bytes(b"half")
    part.chmod(0o640)
    if is_there:
        target.write_bytes(b"before")
    writer = open_file(str(part), readonly=False)
    try:
        with pytest.raises(DiskError, match="in use"):
            copy(source, target)
    finally:
        writer.close()
    assert part.read_bytes() == b"half"
    assert part.stat().st_mode & 0o777 == 0o640
    copy(source, target)
    assert target.read_bytes() == CONTENT
    assert not part.exists()


def test_label_that_every_file_has_is_no_reason_to_overwrite_in_place(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"before")
    before = target.stat().st_ino
    monkeypatch.setattr(os, "listxattr", lambda _: ["security.selinux"])
    copy(source, target)
    assert target.read_bytes() == CONTENT
    assert target.stat().st_ino != before
    monkeypatch.setattr(os, "listxattr", lambda _: ["security.selinux", "user.note"])
    before = target.stat().st_ino
    copy(source, target)
    assert target.stat().st_ino == before

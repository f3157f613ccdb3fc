"""Conversions that end early, and those around the host's page cache."""

from __future__ import annotations

import errno
import os
import random
import shlex
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
from qcow2_oracle import needs_qemu, qemu

from ostler.block import create_image, open_image
from ostler.block.jobs.convert import convert
from ostler.block.target import rename_new
from ostler.engine.block import copy_disk
from ostler.errors import DiskError, OstlerError

MIB = 1 << 20
OSTLER = str(Path(sysconfig.get_path("scripts"), "ostler"))
PATIENCE_S = 120

pytestmark = needs_qemu


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(random.Random(1).randbytes(6 * MIB + 512))
    return path


def heed_interrupts() -> None:
    """SIGINT as at a terminal: a shell starts its background jobs with it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def slowly(source: Path, target: Path, format: str) -> subprocess.Popen[bytes]:
    """A conversion that takes a minute; some of it is done."""
    command: list[str | Path] = [
        OSTLER,
        "image",
        "convert",
        "-f",
        "raw",
        "-O",
        format,
        "-r",
        "100k",
        source,
        target,
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=heed_interrupts)
    until = time.monotonic() + PATIENCE_S
    part = target.with_name(f"{target.name}.part")
    while not part.exists() or part.stat().st_blocks < MIB // 1024:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_conversion_that_is_killed_leaves_nothing_that_has_the_targets_name(
    source: Path, tmp_path: Path, format: str
) -> None:
    target = tmp_path / "target"
    part = tmp_path / "target.part"
    for end in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with slowly(source, target, format) as process:
            process.send_signal(end)
            code = process.wait(PATIENCE_S)
        assert code == (-end if end == signal.SIGKILL else 128 + end)
        assert not target.exists()
        assert part.exists() is (end == signal.SIGKILL)
    # What is left of the one that was killed is replaced.
    subprocess.run([OSTLER, "image", "convert", "-O", format, source, target], check=True)
    qemu("compare", "-f", "raw", "-F", format, source, target)
    assert not part.exists()


def test_conversion_that_waits_for_its_limit_is_cancelled_at_once(
    source: Path, tmp_path: Path
) -> None:
    with open_image(source, format="raw", readonly=True) as image:
        # The first piece alone would take hours.
        job = convert([image], tmp_path / "target", limit_bytes_s=100, threads=1)
        while job.done_bytes == 0:
            time.sleep(0.01)
        job.cancel()
        with pytest.raises(OstlerError, match="cancelled"):
            job.wait(PATIENCE_S)
    assert not list(tmp_path.glob("target*"))


def damaged(path: Path) -> Path:
    """An image of which the last clusters are cut off."""
    create_image(path, 8 * MIB)
    with open_image(path) as image:
        image.write(0, b"x" * 8 * MIB)
    os.truncate(path, path.stat().st_size - MIB)
    return path


@pytest.mark.parametrize("was_there", [False, True])
def test_conversion_that_fails_midway_leaves_what_there_was(
    tmp_path: Path, was_there: bool
) -> None:
    target = tmp_path / "target"
    if was_there:
        target.write_bytes(b"old" * MIB)
    with open_image(damaged(tmp_path / "cut"), readonly=True) as image:
        job = convert([image], target, format="raw")
        with pytest.raises(DiskError, match="cut off"):
            job.wait()
    assert target.exists() is was_there
    assert not was_there or target.read_bytes() == b"old" * MIB
    assert not (tmp_path / "target.part").exists()


def test_conversion_takes_no_name_that_somebody_took_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"

    def copy_and_take(*args: Any, **how: Any) -> int:
        lost = copy_disk(*args, **how)
        target.write_bytes(b"mine")
        return lost

    monkeypatch.setattr("ostler.block.jobs.convert.copy_disk", copy_and_take)
    with open_image(source, format="raw", readonly=True) as image:
        job = convert([image], target)
        with pytest.raises(DiskError, match="somebody made it meanwhile"):
            job.wait()
    assert target.read_bytes() == b"mine"
    assert not (tmp_path / "target.part").exists()


def test_target_that_is_there_is_exchanged_for_one_with_its_mode(
    source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old" * MIB * 4)
    target.chmod(0o640)
    before = target.stat()
    subprocess.run([OSTLER, "image", "convert", "-O", "qcow2", source, target], check=True)
    after = target.stat()
    assert before.st_ino != after.st_ino
    owner = (before.st_mode, before.st_uid, before.st_gid)
    assert owner == (after.st_mode, after.st_uid, after.st_gid)
    qemu("compare", "-f", "raw", "-F", "qcow2", source, target)


@pytest.mark.parametrize("kind", ["link", "second name", "attribute"])
def test_target_that_no_other_file_can_be_is_overwritten(
    source: Path, tmp_path: Path, kind: str
) -> None:
    target, name = tmp_path / "target", tmp_path / "name"
    target.write_bytes(b"old" * MIB * 4)
    if kind == "link":
        name.symlink_to(target)
    elif kind == "second name":
        name.hardlink_to(target)
    else:
        os.setxattr(target, "user.kept", b"yes")
        name = target
    before = target.stat().st_ino
    subprocess.run([OSTLER, "image", "convert", "-O", "qcow2", source, name], check=True)
    assert name.is_symlink() is (kind == "link")
    assert target.stat().st_ino == before
    assert not list(tmp_path.glob("*.part"))
    qemu("compare", "-f", "raw", "-F", "qcow2", source, target)


def test_target_through_a_link_to_nothing_is_made_there(source: Path, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    subprocess.run([OSTLER, "image", "convert", "-O", "qcow2", source, link], check=True)
    assert link.is_symlink()
    qemu("compare", "-f", "raw", "-F", "qcow2", source, target)


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_target_that_is_there_stays_until_all_of_the_new_one_is_there(
    source: Path, tmp_path: Path, format: str
) -> None:
    target, part = tmp_path / "target", tmp_path / "target.part"
    target.write_bytes(b"old" * MIB)
    for end in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with slowly(source, target, format) as process:
            used = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", target],
                                  capture_output=True, text=True)  # fmt: skip
            assert "lock" in used.stderr
            process.send_signal(end)
            process.wait(PATIENCE_S)
        assert target.read_bytes() == b"old" * MIB
        assert part.exists() is (end == signal.SIGKILL)
    subprocess.run([OSTLER, "image", "convert", "-O", format, source, target], check=True)
    qemu("compare", "-f", "raw", "-F", format, source, target)
    assert not part.exists()


def test_target_that_is_in_use_is_refused_and_stays(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    create_image(target, MIB)
    before = target.read_bytes()
    with (
        open_image(target),
        open_image(source, format="raw", readonly=True) as image,
        pytest.raises(DiskError, match=f"^{target}: disk image is in use"),
    ):
        convert([image], target)
    assert target.read_bytes() == before
    assert not (tmp_path / "target.part").exists()


def test_target_that_is_to_be_behind_itself_is_refused(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    create_image(target, 8 * MIB)
    options = {"backing_file": "target", "backing_fmt": "qcow2"}
    with (
        open_image(source, format="raw", readonly=True) as image,
        pytest.raises(DiskError, match="is read by this conversion"),
    ):
        convert([image], target, format="qcow2", options=options)
    with open_image(target) as image:
        assert image.size_bytes == 8 * MIB


@pytest.mark.parametrize("mode", ["none", "directsync", "writeback", "writethrough", "unsafe"])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_conversion_in_every_cache_mode_is_equal(
    source: Path, tmp_path: Path, mode: str, format: str
) -> None:
    target = tmp_path / "target"
    modes = ["-t", mode, "-T", mode]
    command: list[str | Path] = [OSTLER, "image", "convert", *modes, "-O", format, source, target]
    subprocess.run(command, check=True)
    qemu("compare", "-f", "raw", "-F", format, source, target)
    same: list[str | Path] = [
        OSTLER,
        "image",
        "compare",
        "-T",
        mode,
        "-f",
        "raw",
        "-F",
        format,
        source,
        target,
    ]
    subprocess.run(same, check=True)
    timed: list[str | Path] = [
        OSTLER,
        "image",
        "bench",
        "-q",
        "-c",
        "50",
        "-w",
        "-t",
        mode,
        "-f",
        format,
        target,
    ]
    subprocess.run(timed, check=True)
    if format == "qcow2":
        qemu("check", target)


def test_errors_name_the_target_as_it_was_given(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "none" / "target"
    with (
        open_image(source, format="raw", readonly=True) as image,
        pytest.raises(DiskError, match=f"^{target}: .*; make the directory {target.parent} first"),
    ):
        convert([image], target)


def test_target_over_the_limit_of_files_has_a_cure(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    command = [OSTLER, "image", "convert", "-f", "raw", "-O", "raw", str(source), str(target)]
    limit = f"trap '' XFSZ; ulimit -f 1000; exec {shlex.join(map(str, command))}"
    ended = subprocess.run(["sh", "-c", limit], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"ostler: {target}: cannot ")
    assert "File too large; raise the limit (ulimit -f)" in ended.stderr
    assert not list(tmp_path.glob("target*"))


def test_name_is_not_taken_twice_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    part, target = tmp_path / "target.part", tmp_path / "target"
    part.write_bytes(b"whole")
    rename_new(str(part), str(target), lasting=True)
    assert target.read_bytes() == b"whole"
    part.write_bytes(b"another")
    with pytest.raises(DiskError, match=f"{target}: cannot be made"):
        rename_new(str(part), str(target), lasting=False)
    assert target.read_bytes() == b"whole"

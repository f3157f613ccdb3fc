"""Images that are exchanged, copied and backed up while somebody writes; QEMU is the judge."""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qcow2_oracle import check_and_compare, needs_qemu, qemu

from ostler.block import create_image
from ostler.block import live as live_module
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.image import Opening, open_image, open_with
from ostler.block.jobs import live_commit
from ostler.block.jobs.commit import commit
from ostler.block.jobs.convert import convert
from ostler.block.live import LiveImage
from ostler.errors import ConfigError, DiskError, OstlerError

SIZE = 24 << 20
BLOCK = 4096
PATIENCE_S = 300

pytestmark = needs_qemu


def pattern(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK)


class Writer:
    """Somebody who uses a disk all the time, and knows what has to be on it."""

    def __init__(self, live: LiveImage, truth: bytearray) -> None:
        self.live, self.truth = live, truth
        self.dice = random.Random(7)
        self.failed: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.step()
        except BaseException as error:
            self.failed = error

    def step(self) -> None:
        """A write, zeroes or a flush, and a look at another place."""
        disk, dice = self.live.disk, self.dice
        offset = dice.randrange(SIZE // BLOCK) * BLOCK
        kind = dice.randrange(12)
        if kind == 0:
            disk.write_zeroes(offset, BLOCK)
            self.truth[offset : offset + BLOCK] = bytes(BLOCK)
        elif kind == 1:
            disk.flush()
        else:
            data = dice.randbytes(BLOCK)
            disk.write(offset, data)
            self.truth[offset : offset + BLOCK] = data
        other = dice.randrange(SIZE // BLOCK) * BLOCK
        assert disk.read(other, BLOCK) == self.truth[other : other + BLOCK]

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.failed is not None:
            raise self.failed


@contextmanager
def opened(path: Path, format: str | None = None) -> Iterator[LiveImage]:
    how = Opening()
    with LiveImage(open_with(str(path), format, how), how) as live:
        yield live


def filled(path: Path, format: str = "qcow2", seed: int = 1, **options: Any) -> bytearray:
    """An image with something here and there; what it reads as."""
    create_image(path, SIZE, format=format, **options)
    dice = random.Random(seed)
    with open_with(str(path), format, Opening()) as image:
        truth = bytearray(image.read(0, SIZE))
        for _ in range(60):
            length = BLOCK * dice.randrange(1, 40)
            offset = dice.randrange((SIZE - length) // BLOCK) * BLOCK
            data = dice.randbytes(length)
            image.write(offset, data)
            truth[offset : offset + length] = data
    return truth


def chain(directory: Path, depth: int, **options: Any) -> tuple[list[Path], bytearray]:
    """A base and overlays on it, each with data of its own."""
    paths = [directory / f"layer{number}" for number in range(depth + 1)]
    truth = filled(paths[0], seed=0)
    for number in range(1, depth + 1):
        behind = {"backing_file": str(paths[number - 1]), "backing_fmt": "qcow2"}
        truth = filled(paths[number], seed=number, **behind, **options)
    return paths, truth


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_overlay_takes_what_is_written_and_leaves_what_there_was(
    tmp_path: Path, format: str
) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    truth = filled(base, format)
    before = bytes(truth)
    with opened(base, format) as live:
        live.overlay(top)
        with Writer(live, truth) as writer:
            live.overlay(tmp_path / "higher")
            writer.step()
        assert live.files == [str(tmp_path / "higher"), str(top), str(base)]
    check_and_compare(tmp_path / "higher", truth)
    with open_with(str(base), format, Opening(readonly=True)) as image:
        assert image.read(0, SIZE) == before


def test_overlay_that_cannot_be_made_leaves_the_image_in_use(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    truth = filled(base)
    top.write_bytes(b"somebody's")
    with opened(base) as live:
        with pytest.raises(DiskError, match="is there already"):
            live.overlay(top)
        live.disk.write(0, pattern(3))
        truth[:BLOCK] = pattern(3)
    assert top.read_bytes() == b"somebody's"
    check_and_compare(base, truth)


@pytest.mark.parametrize("options", [{}, {"extended_l2": True, "cluster_size": 1 << 17}])
def test_stream_makes_the_image_whole_while_it_is_written(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    paths, truth = chain(tmp_path, 2, **options)
    with opened(paths[-1]) as live:
        with Writer(live, truth):
            live.stream().wait(PATIENCE_S)
        assert live.files == [str(paths[-1])]
        assert live.disk.read(0, SIZE) == truth
    for path in paths[:-1]:
        path.unlink()
    check_and_compare(paths[-1], truth)


@pytest.mark.parametrize("depth", [1, 2])
def test_commit_goes_on_in_the_base_while_it_is_written(tmp_path: Path, depth: int) -> None:
    paths, truth = chain(tmp_path, depth)
    with opened(paths[-1]) as live:
        with Writer(live, truth):
            live.commit(str(paths[0])).wait(PATIENCE_S)
        assert live.files == [str(paths[0])]
        assert live.disk.read(0, SIZE) == truth
    for path in paths[1:]:
        path.unlink()
    check_and_compare(paths[0], truth)


def test_commit_to_a_raw_base_that_is_smaller_makes_it_larger(tmp_path: Path) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    base.write_bytes(pattern(1) * 16)
    create_image(top, SIZE, backing_file=str(base), backing_fmt="raw")
    truth = bytearray((pattern(1) * 16).ljust(SIZE, b"\0"))
    with opened(top) as live, Writer(live, truth):
        live.commit().wait(PATIENCE_S)
    assert base.read_bytes() == truth


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_mirror_with_pivot_goes_on_in_the_copy(tmp_path: Path, format: str) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)
    with opened(source) as live:
        with Writer(live, truth):
            live.mirror(copy, format=format).wait(PATIENCE_S)
        assert live.files == [str(copy)]
    source.unlink()
    if format == "raw":
        assert copy.read_bytes() == truth
    else:
        check_and_compare(copy, truth)


def test_mirror_without_pivot_leaves_a_copy_and_the_image_in_use(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)
    with opened(source) as live:
        with Writer(live, truth):
            live.mirror(copy, pivot=False).wait(PATIENCE_S)
        assert live.files == [str(source)]
    qemu("check", copy)
    check_and_compare(source, truth)


def test_backup_has_the_disk_as_it_was_when_it_began(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)
    before = bytes(truth)
    with opened(source) as live:
        # As a backup leaves it that was killed.
        Path(f"{copy}.part").write_bytes(b"half")
        job = live.backup(copy, limit_bytes_s=16 << 20)
        with Writer(live, truth):
            job.wait(PATIENCE_S)
    check_and_compare(copy, before)
    check_and_compare(source, truth)


def test_incremental_backup_over_the_one_before_is_whole(tmp_path: Path) -> None:
    source, full, more = (tmp_path / name for name in ("source", "full", "more"))
    truth = filled(source)
    qemu("bitmap", "--add", source, "b0")
    with opened(source) as live:
        live.backup(full).wait(PATIENCE_S)
        first = bytes(truth)
        writer = Writer(live, truth)
        for _ in range(100):
            writer.step()
        second = bytes(truth)
        options = {"backing_file": str(full), "backing_fmt": "qcow2"}
        job = live.backup(more, bitmap="b0", options=options)
        for _ in range(100):
            writer.step()
        job.wait(PATIENCE_S)
        assert 0 < job.total_bytes < SIZE
    check_and_compare(full, first)
    check_and_compare(more, second)
    check_and_compare(source, truth)


def test_overlay_takes_the_bitmaps_along_that_record(tmp_path: Path) -> None:
    source, over, full, more = (tmp_path / name for name in ("source", "over", "full", "more"))
    truth = filled(source)
    qemu("bitmap", "--add", source, "b0")
    qemu("bitmap", "--add", "--disable", source, "off")
    with opened(source) as live:
        live.backup(full).wait(PATIENCE_S)
        writer = Writer(live, truth)
        for _ in range(50):
            writer.step()
        live.overlay(over)
        for _ in range(50):
            writer.step()
        second = bytes(truth)
        with pytest.raises(DiskError, match="no bitmap 'off'; there is: b0"):
            live.backup(more, bitmap="off")
        options = {"backing_file": str(full), "backing_fmt": "qcow2"}
        job = live.backup(more, bitmap="b0", options=options)
        job.wait(PATIENCE_S)
        assert 0 < job.total_bytes < SIZE
        for _ in range(50):
            writer.step()
    check_and_compare(more, second)
    check_and_compare(over, truth)
    for path, names in ((source, {"b0", "off"}), (over, {"b0"})):
        with open_image(path, readonly=True) as image:
            assert isinstance(image, Qcow2Image)
            assert {bitmap.name for bitmap in image.bitmaps if bitmap.is_saved} == names


def test_overlay_whose_bitmaps_cannot_be_kept_is_not_gone_on_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, over = tmp_path / "source", tmp_path / "over"
    truth = filled(source)
    qemu("bitmap", "--add", source, "b0")
    monkeypatch.setattr("ostler.block.formats.qcow2.recording.inherit", refuse)
    with opened(source) as live:
        with pytest.raises(DiskError):
            live.overlay(over)
        assert live.files == [str(source)]
        assert not over.exists()
        Writer(live, truth).step()
    check_and_compare(source, truth)


def test_backup_that_is_cancelled_marks_again_what_it_was_to_copy(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)
    qemu("bitmap", "--add", source, "b0")
    with opened(source) as live:
        for offset, seed in ((0, 1), (8 << 20, 2)):
            live.disk.write(offset, pattern(seed) * 1024)
            truth[offset : offset + (4 << 20)] = pattern(seed) * 1024
        job = live.backup(copy, bitmap="b0", limit_bytes_s=1 << 20)
        job.cancel()
        with pytest.raises(OstlerError, match="cancelled"):
            job.wait(PATIENCE_S)
        image = live.image
        assert isinstance(image, Qcow2Image)
        assert image.record().usable("b0")[1].dirty_bytes == 8 << 20
        live.disk.write(0, pattern(4))
        truth[:BLOCK] = pattern(4)
    check_and_compare(source, truth)


@pytest.mark.parametrize("verb", ["commit", "stream", "mirror"])
def test_job_that_is_cancelled_leaves_the_disk_as_it_is(tmp_path: Path, verb: str) -> None:
    paths, truth = chain(tmp_path, 1)
    with opened(paths[-1]) as live:
        with Writer(live, truth):
            starts = {
                "commit": lambda: live.commit(limit_bytes_s=1 << 20),
                "stream": lambda: live.stream(limit_bytes_s=1 << 20),
                "mirror": lambda: live.mirror(tmp_path / "copy", limit_bytes_s=1 << 20),
            }
            job = starts[verb]()
            job.cancel()
            with pytest.raises(OstlerError, match="cancelled"):
                job.wait(PATIENCE_S)
        assert live.files == [str(paths[1]), str(paths[0])]
    check_and_compare(paths[-1], truth)


def test_disk_does_one_job_at_a_time_and_says_which(tmp_path: Path) -> None:
    paths, _ = chain(tmp_path, 1)
    with opened(paths[-1]) as live:
        assert repr(live) == f"<LiveImage '{paths[-1]}', qcow2>"
        job = live.stream(limit_bytes_s=1 << 20)
        assert re.search(r", qcow2, <Job stream, \d+ of \d+ bytes>>$", repr(live))
        with pytest.raises(DiskError, match="its stream is not finished"):
            live.mirror(tmp_path / "copy")
        job.cancel()
        with pytest.raises(OstlerError, match="cancelled"):
            job.wait(PATIENCE_S)
        assert re.fullmatch("<Job stream, failed: .*cancelled>", repr(job))


def test_jobs_that_have_nothing_to_do_say_so(tmp_path: Path) -> None:
    filled(tmp_path / "one")
    with opened(tmp_path / "one") as live:
        for start in (live.commit, live.stream):
            with pytest.raises(DiskError, match="nothing is behind it"):
                start()
        with pytest.raises(DiskError, match="no bitmap 'b9'"):
            live.backup(tmp_path / "copy", bitmap="b9")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("limit", [-1, 1.5, 1 << 64])
def test_limit_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, limit: Any) -> None:
    paths, _ = chain(tmp_path, 1)
    copy = tmp_path / "copy"
    with opened(paths[-1]) as live:
        assert isinstance(live.image, Qcow2Image)
        for start in (
            live.commit,
            live.stream,
            partial(live.mirror, copy),
            partial(live.backup, copy),
            partial(commit, live.image),
            partial(convert, [live.image], copy),
        ):
            with pytest.raises(ConfigError, match=f"limit_bytes_s={limit}: give whole bytes"):
                start(limit_bytes_s=limit)
        assert live.job is None
    assert not copy.exists()


def test_job_is_awaited_and_says_how_far_it_is(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)

    async def run(live: LiveImage) -> None:
        job = live.mirror(copy)
        await job
        assert repr(job) == "<Job mirror, finished>"
        assert job.done_bytes == job.total_bytes >= SIZE

    with opened(source) as live:
        asyncio.run(run(live))
    check_and_compare(copy, truth)


def test_internal_snapshot_of_a_disk_in_use_is_what_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    truth = filled(source)
    with opened(source) as live:
        before = bytes(truth)
        live.snapshot("one")
        writer = Writer(live, truth)
        for _ in range(50):
            writer.step()
    check_and_compare(source, truth)
    qemu("snapshot", "-a", "one", source)
    check_and_compare(source, before)


def test_snapshot_is_deleted_while_the_disk_is_in_use_and_not_applied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    truth = filled(source)
    with opened(source) as live:
        live.snapshot("one")
        with Writer(live, truth):
            two = live.snapshot("two")
            live.delete_snapshot("one")
            live.snapshot("three")
            live.delete_snapshot(two.id)
        assert [snapshot.name for snapshot in live.snapshots] == ["three"]
        with pytest.raises(DiskError, match="stop the machine, run: ostler image snapshot -a"):
            live.apply_snapshot("three")
        with pytest.raises(DiskError, match="there is no snapshot 'one'; there is: three"):
            live.delete_snapshot("one")
    check_and_compare(source, truth)


@pytest.mark.parametrize("format", ["raw", "qcow2", "overlay"])
def test_disk_that_grows_under_its_user_has_zeroes_behind_and_tells_him(
    tmp_path: Path, format: str
) -> None:
    source, longer = tmp_path / "source", SIZE + (9 << 20)
    if format == "overlay":
        # What the base has behind the overlay's end does not show up.
        base = tmp_path / "base"
        with open(base, "wb") as file:
            file.write(b"base" * ((SIZE + (1 << 20)) // 4))
        truth = filled(source, backing_file=str(base), backing_fmt="raw")
    else:
        truth = filled(source, format)
    told: list[int] = []
    with opened(source, "raw" if format == "raw" else "qcow2") as live:
        live.tell_size = lambda: told.append(live.disk.size_bytes)
        with Writer(live, truth):
            live.resize(longer)
        assert told == [longer]
        assert live.disk.read(SIZE, longer - SIZE) == bytes(longer - SIZE)
        live.disk.write(longer - BLOCK, pattern(3))
        live.mirror(tmp_path / "copy", pivot=False).wait()
    truth += bytes(longer - SIZE - BLOCK) + pattern(3)
    if format == "raw":
        assert source.read_bytes() == truth
    else:
        check_and_compare(source, truth)
    check_and_compare(tmp_path / "copy", truth)


def test_disk_that_grows_keeps_what_its_bitmap_marks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    filled(source)
    qemu("bitmap", "--add", source, "daily")
    with opened(source) as live:
        live.disk.write(1 << 20, pattern(1))
        live.resize(SIZE * 2)
        live.disk.write(SIZE * 2 - BLOCK, pattern(2))
        job = live.backup(tmp_path / "part", bitmap="daily")
        job.wait()
        assert job.total_bytes == 2 << 16


def test_resize_that_cannot_be_changes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    truth = filled(source)
    with opened(source) as live:
        for size, why in (
            (SIZE - 512, "cannot shrink"),
            (SIZE + 1, "not a multiple of 512"),
            (1 << 60, "raise cluster_size"),
        ):
            with pytest.raises(DiskError, match=why):
                live.resize(size)
        assert live.disk.size_bytes == SIZE
        job = live.mirror(tmp_path / "copy", limit_bytes_s=1 << 20)
        with pytest.raises(DiskError, match="mirror is not finished"):
            live.resize(SIZE * 2)
        job.cancel()
    check_and_compare(source, truth)
    create_image(tmp_path / "luks", SIZE, format="luks", secret=SECRET, iter_time=1)
    how = Opening(secret=SECRET)
    with (
        LiveImage(open_with(str(tmp_path / "luks"), "luks", how), how) as live,
        pytest.raises(DiskError, match="format luks keep their size while"),
    ):
        live.resize(SIZE * 2)


SECRET = b"a long one"


def refuse(*_: Any) -> Any:
    raise DiskError("not today")


def check_fails(live: LiveImage) -> None:
    """Every request is answered with an error, and no change is begun."""
    disk = live.disk
    for request in (
        lambda: disk.write(0, pattern(1)),
        lambda: disk.read(0, BLOCK),
        lambda: disk.write_zeroes(0, BLOCK),
        disk.flush,
    ):
        with pytest.raises((OstlerError, OSError), match="could not be opened again"):
            request()
    with pytest.raises(DiskError, match="stop the machine"):
        live.stream()


@pytest.mark.parametrize("verb", ["mirror", "backup"])
def test_copy_over_another_image_hides_it_where_the_disk_is_zero(tmp_path: Path, verb: str) -> None:
    source, old, copy = (tmp_path / name for name in ("source", "old", "copy"))
    truth = filled(source)
    old.write_bytes(pattern(9) * (SIZE // BLOCK))
    options = {"backing_file": str(old), "backing_fmt": "raw"}
    with opened(source) as live:
        getattr(live, verb)(copy, options=options).wait(PATIENCE_S)
    check_and_compare(copy, truth)


def test_disk_that_moved_to_an_encrypted_image_goes_on_in_an_overlay(tmp_path: Path) -> None:
    source, copy, top = (tmp_path / name for name in ("source", "copy", "top"))
    truth = filled(source)
    with opened(source) as live:
        options = {"secret": SECRET, "iter_time": 10}
        live.mirror(copy, format="luks", options=options).wait(PATIENCE_S)
        assert live.disk.read(0, SIZE) == truth
        live.overlay(top)
        live.disk.write(0, pattern(3))
        truth[:BLOCK] = pattern(3)
        live.commit().wait(PATIENCE_S)
        assert live.files == [str(copy)]
        assert live.disk.read(0, SIZE) == truth
    with open_with(str(copy), "luks", Opening(secret=SECRET)) as image:
        assert image.read(0, SIZE) == truth


@pytest.mark.parametrize("how", [Opening(direct=True), Opening(unsafe=True)])
def test_disk_that_moved_keeps_its_cache_mode(tmp_path: Path, how: Opening) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)
    try:
        image = open_with(str(source), "qcow2", how)
    except DiskError as error:
        if "O_DIRECT" in str(error):
            pytest.skip("a file system without O_DIRECT")
        raise
    with LiveImage(image, how) as live:
        live.mirror(copy).wait(PATIENCE_S)
        moved = live.image
        assert isinstance(moved, Qcow2Image)
        assert moved.name == str(copy)
        assert getattr(moved.file, "direct", False) is how.direct
        assert moved.how.unsafe is how.unsafe
    check_and_compare(copy, truth)


def test_disk_of_which_nothing_opens_any_more_fails_and_loses_no_write_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, top = tmp_path / "source", tmp_path / "top"
    truth = filled(source)
    with opened(source) as live:
        live.disk.write(0, pattern(2))
        truth[:BLOCK] = pattern(2)
        with monkeypatch.context() as patched:
            patched.setattr(live_module, "open_with", refuse)
            with pytest.raises(DiskError, match=r"cannot be opened again.*not today"):
                live.overlay(top)
        check_fails(live)
    assert not top.exists()
    check_and_compare(source, truth)


@pytest.mark.parametrize("is_lost", [False, True])
def test_commit_whose_base_does_not_open_goes_back_to_the_overlay_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    paths, truth = chain(tmp_path, 1)
    monkeypatch.setattr(live_commit, "open_with", refuse)
    with opened(paths[-1]) as live:
        if is_lost:
            with monkeypatch.context() as patched:
                patched.setattr(live_module, "open_with", refuse)
                with pytest.raises(DiskError, match="cannot be opened again"):
                    live.commit().wait(PATIENCE_S)
            check_fails(live)
        else:
            with Writer(live, truth), pytest.raises(DiskError, match="not today"):
                live.commit().wait(PATIENCE_S)
            assert live.files == [str(paths[1]), str(paths[0])]
    check_and_compare(paths[-1], truth)


def test_commit_whose_overlay_does_not_close_stays_in_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, truth = chain(tmp_path, 1)
    closed: list[str] = []
    close = Qcow2Image.close

    def fail_second(image: Qcow2Image) -> None:
        close(image)
        closed.append(image.name)
        if image.name == str(paths[1]) and closed.count(image.name) == 2:
            raise DiskError("no space for bitmaps")

    with opened(paths[-1]) as live:
        monkeypatch.setattr(Qcow2Image, "close", fail_second)
        with Writer(live, truth), pytest.raises(DiskError, match="no space for bitmaps"):
            live.commit().wait(PATIENCE_S)
        assert live.files == [str(paths[0])]
        live.disk.write(0, pattern(5))
        truth[:BLOCK] = pattern(5)
    check_and_compare(paths[0], truth)


def test_mirror_that_cannot_be_gone_on_in_leaves_the_disk_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)
    with opened(source) as live:
        with monkeypatch.context() as patched:
            patched.setattr(live, "use", refuse)
            with pytest.raises(DiskError, match="not today"):
                live.mirror(copy).wait(PATIENCE_S)
        assert not copy.exists()
        live.image.write(0, pattern(4))
        truth[:BLOCK] = pattern(4)
    check_and_compare(source, truth)


@pytest.mark.parametrize("verb", ["commit", "stream"])
def test_image_with_snapshots_keeps_what_is_behind_it(tmp_path: Path, verb: str) -> None:
    paths, truth = chain(tmp_path, 1)
    with opened(paths[-1]) as live:
        live.snapshot("one")
        with pytest.raises(DiskError, match=rf"internal snapshots .* delete them .* to {verb}"):
            getattr(live, verb)()
        assert live.files == [str(paths[1]), str(paths[0])]
    check_and_compare(paths[-1], truth)


def test_overlay_that_failed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, top = tmp_path / "source", tmp_path / "top"
    truth = filled(source)
    with opened(source) as live:

        def refuse_top(name: str, *rest: Any) -> Any:
            return refuse() if name == str(top) else open_with(name, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(live_module, "open_with", refuse_top)
            with pytest.raises(DiskError, match="not today"):
                live.overlay(top)
        live.disk.write(0, pattern(3))
        truth[:BLOCK] = pattern(3)
        live.overlay(top)
    check_and_compare(top, truth)


@pytest.mark.parametrize("verb", ["mirror", "backup"])
def test_copy_that_was_cancelled_is_made_again(tmp_path: Path, verb: str) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    truth = filled(source)
    with opened(source) as live:
        job = getattr(live, verb)(copy, limit_bytes_s=1 << 20)
        job.cancel()
        with pytest.raises(OstlerError, match="cancelled"):
            job.wait(PATIENCE_S)
        assert not copy.exists()
        getattr(live, verb)(copy).wait(PATIENCE_S)
    check_and_compare(copy, truth)


def test_disk_that_is_read_only_gets_no_overlay(tmp_path: Path) -> None:
    source = tmp_path / "source"
    filled(source)
    how = Opening(readonly=True)
    with (
        LiveImage(open_with(str(source), None, how), how) as live,
        pytest.raises(DiskError, match="opened read-only"),
    ):
        live.overlay(tmp_path / "top")
    assert not (tmp_path / "top").exists()


def test_snapshot_of_a_disk_in_use_is_not_made_twice_by_one_name(tmp_path: Path) -> None:
    source = tmp_path / "source"
    filled(source)
    with opened(source) as live:
        live.snapshot("one")
        for name, said in ("one", "'one' already"), ("", "needs a name"):
            with pytest.raises(DiskError, match=said):
                live.snapshot(name)
        assert len(live.snapshots) == 1


BACK_UP = """
import sys
from ostler.block.image import Opening, open_with
from ostler.block.image import open_image
from ostler.block.live import LiveImage
with LiveImage(open_with(sys.argv[1], "raw", Opening()), Opening()) as live:
    try:
        live.backup(sys.argv[2], format="raw").wait()
    except Exception as error:
        print(error)
"""


def test_backup_to_a_full_file_system_names_the_target(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounting takes root")
    (tmp_path / "source").write_bytes(b"x" * (2 << 20))
    (full := tmp_path / "full").mkdir()
    mounted = f'mount -t tmpfs -o size=1m none {full} && exec "$@"'
    unshare = ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", BACK_UP]
    command = [*unshare, str(tmp_path / "source"), str(full / "copy")]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        pytest.skip(f"no mounts here: {done.stderr}")
    assert done.stdout.startswith(f"{full / 'copy'}: ")
    assert "No space left" in done.stdout

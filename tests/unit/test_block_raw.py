"""Raw images: what is opened, what is refused, and who may share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ostler.block import HostFile, open_image
from ostler.block.bench import bench, threads_of
from ostler.errors import DiskError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096))
    return path


def test_image_opened_knows_its_size_and_offers_its_descriptor(path: Path) -> None:
    with open_image(path) as image:
        assert isinstance(image, HostFile)
        assert (image.size_bytes, image.readonly) == (4096, False)
        assert image.fd >= 0
    assert image.fd == -1
    image.close()


@pytest.mark.parametrize(
    ("size", "format", "cure"),
    [
        (0, "raw", "image create"),
        (0, None, "image create"),
        (513, "raw", "truncate -s 1024"),
        (1, "raw", "truncate -s 512"),
        (1, None, "read only"),
    ],
)
def test_image_of_a_size_no_disk_has_is_refused_for_writing_with_a_cure(
    path: Path, size: int, format: str | None, cure: str
) -> None:
    path.write_bytes(bytes(size))
    with pytest.raises(DiskError, match=cure) as caught:
        open_image(path, format=format)
    assert "\n" not in str(caught.value)


def test_image_missing_or_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="no such disk image"):
        open_image(tmp_path / "nothing")
    with pytest.raises(DiskError, match="directory"):
        open_image(tmp_path)
    with pytest.raises(DiskError, match="neither a file nor a block device"):
        open_image("/dev/null")


def test_image_written_by_one_is_in_use_for_others(path: Path) -> None:
    with open_image(path):
        for readonly in (False, True):
            with pytest.raises(DiskError, match="in use"):
                open_image(path, readonly=readonly)
    with open_image(path):
        pass


def test_image_locked_whole_by_another_program_is_in_use(path: Path) -> None:
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX);"
        " print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(DiskError, match="in use by another process; stop it or use a copy"):
            open_image(path)
        other.communicate()
    with open_image(path):
        pass


def test_image_read_only_is_shared_by_readers_and_closed_to_writers(path: Path) -> None:
    with (
        open_image(path, readonly=True),
        open_image(path, readonly=True),
        pytest.raises(DiskError, match="in use"),
    ):
        open_image(path)


def test_bench_waits_for_as_many_requests_as_asked_where_no_page_cache_answers(
    tmp_path: Path,
) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    with open_image(path, format="raw", readonly=True) as cached:
        assert threads_of(cached, 1000) == os.cpu_count()
    uncached = open_image(path, format="raw", readonly=True)
    uncached.file.direct = True  # type: ignore[attr-defined]  # a RawImage on a local file
    with uncached:
        assert threads_of(uncached, 16) == 16
        if has_direct(path):
            assert bench(uncached, count=64, length=4096, depth=16) > 0


def has_direct(path: Path) -> bool:
    """Whether the file system takes O_DIRECT."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True

"""What a machine of QEMU saved in a snapshot stays whole, whatever is done to the image."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from qcow2_oracle import needs_qemu, qemu

from ostler.block import open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.block.image import Opening, open_with
from ostler.block.live import LiveImage

MIB = 1 << 20
SIZE = 10 * MIB
MACHINE = (
    "qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "16", "-S",
    "-device", "virtio-blk,drive=d", "-qmp", "stdio",
)  # fmt: skip
NAMES = ("one", "two")

pytestmark = [
    needs_qemu,
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no QEMU to save a machine"),
]


def monitor(path: Path, *lines: str, options: tuple[str, ...] = ()) -> str:
    """A machine with the disk at `path`, given lines for its monitor; what it answered."""
    drive = ("-drive", f"file={path},format=qcow2,if=none,id=d")
    human = [
        {"execute": "human-monitor-command", "arguments": {"command-line": line}} for line in lines
    ]
    commands = [{"execute": "qmp_capabilities"}, *human, {"execute": "quit"}]
    typed = "".join(json.dumps(command) + "\n" for command in commands)
    ended = subprocess.run(
        [*MACHINE, *drive, *options],
        input=typed, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return ended.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with the state of a machine in each of its two snapshots."""
    path = tmp_path_factory.mktemp("saved") / "saved.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    with open_image(path) as image:
        image.write(0, b"one" * MIB)
    monitor(path, "savevm one")
    with open_image(path) as image:
        image.write(MIB, b"two" * MIB)
    monitor(path, "savevm two")
    return path


@pytest.fixture
def image(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved, tmp_path / "image.qcow2"))


def ostler(*arguments: object) -> str:
    command = [str(Path(sysconfig.get_path("scripts"), "ostler")), "image", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def state(path: Path, name: str) -> str:
    """The machine's state as QEMU reads it from a snapshot: a dump without its last line."""
    copy = Path(shutil.copy(path, path.with_suffix(".state")))
    (size,) = (s["vm-state-size"] for s in facts(copy)["snapshots"] if str(s["name"]) == name)
    assert size > 0
    qemu("snapshot", "-a", name, copy)
    read = ["qemu-io", "-f", "qcow2", "-c", f"read -b -v 0 {size & -512}", str(copy)]
    ended = subprocess.run(read, check=True, capture_output=True, text=True)
    return ended.stdout.rsplit("read ", 1)[0]


def facts(path: Path) -> dict[str, list[dict[str, int]]]:
    command = ["qemu-img", "info", "--output=json", str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # type: ignore[no-any-return]  # JSON


def is_whole(path: Path, saved: Path, *names: str) -> None:
    """QEMU finds the image sound, the states as they were, and loads the machines."""
    qemu("check", path)
    for name in names:
        assert state(path, name) == state(saved, name)
        answer = monitor(Path(shutil.copy(path, path.with_suffix(".load"))), f"loadvm {name}")
        assert '"return": ""' in answer, answer


def test_listing_shows_what_qemu_shows(image: Path) -> None:
    theirs = subprocess.run(
        ["qemu-img", "snapshot", "-l", image], check=True, capture_output=True, text=True
    ).stdout
    ours = ostler("snapshot", "-l", image)
    assert [line.split() for line in ours.splitlines()] == [
        line.split() for line in theirs.splitlines()
    ]
    ours_json = json.loads(ostler("info", "--output=json", image))["snapshots"]
    assert ours_json == facts(image)["snapshots"]


def make_another(path: Path) -> None:
    ostler("snapshot", "-c", "three", path)


def apply(path: Path) -> None:
    ostler("snapshot", "-a", "one", path)


def apply_and_grow(path: Path) -> None:
    ostler("snapshot", "-a", "one", path)
    ostler("resize", path, "2G")
    # The state lies behind the disk's end: a longer disk must not show it.
    with open_image(path, readonly=True) as disk:
        for extent in disk.extents(SIZE, disk.size_bytes - SIZE):
            assert extent.zero, extent


def grow_and_shrink(path: Path) -> None:
    ostler("resize", path, "3G")
    ostler("resize", "--shrink", path, "5M")


def repair(path: Path) -> None:
    ostler("check", "-r", "all", path)


def amend(path: Path) -> None:
    ostler("amend", "-o", "refcount_bits=64", path)
    ostler("amend", "-o", "lazy_refcounts=on", path)


def write_everywhere(path: Path) -> None:
    with open_image(path) as disk:
        disk.write(0, b"new" * (SIZE // 3))
        disk.discard(0, SIZE // 2)


def use_live(path: Path) -> None:
    how = Opening()
    with LiveImage(open_with(str(path), "qcow2", how), how) as live:
        live.snapshot("three")
        live.disk.write(0, b"x" * MIB)
        live.resize(2 * SIZE)
        live.delete_snapshot("three")


VERBS = (
    make_another, apply, apply_and_grow, grow_and_shrink, repair, amend, write_everywhere, use_live,
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_state_is_whole_after(verb: Callable[[Path], None], image: Path, saved: Path) -> None:
    verb(image)
    is_whole(image, saved, *NAMES)


def test_snapshot_with_a_state_is_deleted_and_its_room_is_free(image: Path, saved: Path) -> None:
    how = Opening()
    with LiveImage(open_with(str(image), "qcow2", how), how) as live:
        live.delete_snapshot("one")
    is_whole(image, saved, "two")
    ostler("snapshot", "-d", "two", image)
    is_whole(image, saved)
    with open_image(image, readonly=True) as disk:
        assert isinstance(disk, Qcow2Image)
        assert disk.check().is_sound
        # Two times 3 MiB of data, tables, and no state.
        assert disk.check().allocated_clusters < 8 * MIB >> 16

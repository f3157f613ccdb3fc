"""qcow2 by operations at random, against plain bytes and against QEMU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from qcow2_oracle import check_and_compare, needs_qemu, qemu

from ostler.block import create_image, open_image
from ostler.block.formats.qcow2 import Qcow2Image
from ostler.errors import DiskError

KINDS: list[dict[str, Any]] = [
    {},
    {"cluster_size": 512},
    {"cluster_size": 2 << 20},
    {"refcount_bits": 1},
    {"refcount_bits": 64, "cluster_size": 4096},
    {"compat": "0.10"},
    {"lazy_refcounts": True},
    {"extended_l2": True, "cluster_size": 16384},
    {"extended_l2": True, "cluster_size": 131072},
    {"preallocation": "metadata"},
    {"preallocation": "falloc", "cluster_size": 1024},
]
SIZE = (4 << 20) + 3 * 512


def opened(path: Path, **how: Any) -> Qcow2Image:
    image = open_image(path, **how)
    assert isinstance(image, Qcow2Image)
    return image


def change(image: Qcow2Image, truth: bytearray, dice: random.Random) -> None:
    offset = dice.randrange(SIZE)
    length = min(SIZE - offset, dice.choice([1, 512, 4096, 70_000, 300_000, 1_000_000]))
    end = offset + length
    match dice.choices(["write", "zero", "discard", "flush"], [60, 25, 10, 5])[0]:
        case "write":
            truth[offset:end] = dice.randbytes(length)
            image.write(offset, truth[offset:end])
        case "zero":
            truth[offset:end] = bytes(length)
            image.write_zeroes(offset, length, unmap=dice.random() < 0.5)
        case "discard":
            image.discard(offset, length)
            after = image.read(offset, length)
            assert all(new in (old, 0) for old, new in zip(truth[offset:end], after, strict=True))
            truth[offset:end] = after
        case _:
            image.flush()


@needs_qemu
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_image_after_random_changes_is_what_qemu_reads(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, SIZE, **kind)
    qemu("check", path)
    truth, dice = bytearray(SIZE), random.Random(3)
    for _ in range(2):
        with opened(path) as image:
            for _ in range(80):
                change(image, truth, dice)
            assert image.read(0, SIZE) == truth
        check_and_compare(path, truth)
        with opened(path, readonly=True) as image:
            assert image.read(0, SIZE) == truth
            assert image.check().is_sound


@needs_qemu
@pytest.mark.parametrize("kind", [{}, {"cluster_size": 4096}, {"compat": "0.10"}], ids=str)
def test_snapshots_keep_what_the_disk_was(kind: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, SIZE, **kind)
    truth, dice, kept = bytearray(SIZE), random.Random(5), dict[str, bytes]()
    for number in range(10):
        with opened(path) as image:
            for _ in range(8):
                change(image, truth, dice)
            if number % 3 != 2:
                image.snapshot(f"s{number}")
                kept[f"s{number}"] = bytes(truth)
            elif number % 2:
                image.delete_snapshot(name := dice.choice(list(kept)))
                del kept[name]
            else:
                image.apply_snapshot(name := dice.choice(list(kept)))
                truth = bytearray(kept[name])
            change(image, truth, dice)
            assert image.read(0, SIZE) == truth
        check_and_compare(path, truth)
    with opened(path) as image:
        for name, content in kept.items():
            with image.view_snapshot(name) as view:
                assert view.read(0, SIZE) == content
    for name in kept:
        qemu("snapshot", "-d", name, path)
    check_and_compare(path, truth)


def test_snapshot_unknown_is_refused_with_those_there_are(tmp_path: Path) -> None:
    create_image(tmp_path / "disk", SIZE)
    with opened(tmp_path / "disk") as image:
        image.snapshot("one")
        for act in (image.apply_snapshot, image.delete_snapshot):
            with pytest.raises(DiskError, match="no snapshot 'two'; there is: one"):
                act("two")


@needs_qemu
def test_resize_keeps_what_stays_and_zeroes_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, SIZE)
    truth, dice = bytearray(SIZE), random.Random(7)
    with opened(path) as image:
        for _ in range(20):
            change(image, truth, dice)
    for size in (3 << 20, 40 << 20, 1 << 40, (2 << 20) + 512, 5 << 20):
        with opened(path) as image:
            image.resize(size)
            assert image.size_bytes == size
        qemu("check", path)
        del truth[size:]
    truth += bytes((5 << 20) - len(truth))
    check_and_compare(path, truth)


class Chain(RuleBasedStateMachine):
    """An overlay over a base: writes, zeroes, snapshots, reopening and resizing."""

    directory: Path

    @initialize(
        cluster=st.sampled_from([512, 4096, 65536]),
        extended=st.booleans(),
        compat=st.sampled_from(["0.10", "1.1"]),
    )
    def start(self, cluster: int, extended: bool, compat: str) -> None:
        self.path = self.directory / "overlay.qcow2"
        base = self.directory / "base.raw"
        content = random.Random(cluster).randbytes(200 * 512)
        base.write_bytes(content)
        self.truth = bytearray(content) + bytes(300 * 512)
        options: dict[str, Any] = {"cluster_size": cluster, "compat": compat}
        if extended and compat == "1.1":
            options = {"cluster_size": 16384, "extended_l2": True}
        create_image(
            self.path, len(self.truth), backing_file="base.raw", backing_fmt="raw", **options
        )
        self.image, self.kept = opened(self.path), dict[str, bytes]()

    @rule(place=st.floats(0, 1), length=st.integers(1, 40_000), byte=st.integers(0, 255))
    def write(self, place: float, length: int, byte: int) -> None:
        offset, length = self._range(place, length)
        self.truth[offset : offset + length] = bytes([byte]) * length
        self.image.write(offset, bytes([byte]) * length)

    @rule(place=st.floats(0, 1), length=st.integers(1, 200_000), unmap=st.booleans())
    def zero(self, place: float, length: int, unmap: bool) -> None:
        offset, length = self._range(place, length)
        self.truth[offset : offset + length] = bytes(length)
        self.image.write_zeroes(offset, length, unmap=unmap)

    @rule(place=st.floats(0, 1), length=st.integers(1, 200_000))
    def discard(self, place: float, length: int) -> None:
        offset, length = self._range(place, length)
        self.image.discard(offset, length)
        self.truth[offset : offset + length] = self.image.read(offset, length)

    @rule()
    def reopen(self) -> None:
        self.image.close()
        self.image = opened(self.path)

    @rule()
    def flush(self) -> None:
        self.image.flush()

    @rule(number=st.integers(0, 3))
    def snapshot(self, number: int) -> None:
        name = f"s{number}"
        if name in self.kept:
            self.image.delete_snapshot(name)
        self.image.snapshot(name)
        self.kept[name] = bytes(self.truth)

    @rule(number=st.integers(0, 3))
    def apply(self, number: int) -> None:
        if f"s{number}" in self.kept:
            self.image.apply_snapshot(f"s{number}")
            self.truth = bytearray(self.kept[f"s{number}"])

    @rule(sectors=st.integers(150, 700))
    def resize(self, sectors: int) -> None:
        self.image.resize(sectors * 512)
        del self.truth[sectors * 512 :]
        self.truth += bytes(sectors * 512 - len(self.truth))

    def _range(self, place: float, length: int) -> tuple[int, int]:
        offset = int(place * (len(self.truth) - 1))
        return offset, min(length, len(self.truth) - offset)

    @invariant()
    def reads_what_was_written(self) -> None:
        if hasattr(self, "image"):
            assert self.image.read(0, len(self.truth)) == self.truth

    def teardown(self) -> None:
        if hasattr(self, "image"):
            assert self.image.check().is_sound
            self.image.close()
            check_and_compare(self.path, self.truth)


@needs_qemu
def test_overlay_under_any_sequence_of_operations_reads_right(tmp_path: Path) -> None:
    Chain.directory = tmp_path
    limits = settings(
        max_examples=30,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Chain, settings=limits)


def test_snapshot_has_a_name_that_no_other_has(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image(path, SIZE)
    with opened(path) as image:
        image.snapshot("one")
        with pytest.raises(DiskError, match="has a snapshot 'one' already; delete it or"):
            image.snapshot("one")
        with pytest.raises(DiskError, match="needs a name"):
            image.snapshot("", again=True)
        image.snapshot("one", again=True)
        assert [each.name for each in image.snapshots] == ["one", "one"]

"""`check`: what is wrong with an image, and what is repaired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ostler.block.formats.qcow2.header import Autoclear, Incompatible
from ostler.block.formats.qcow2.snapshots import Entry, table_bytes
from ostler.block.image import check_writable
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.formats.qcow2.image import Qcow2Image


class CheckResult(NamedTuple):
    """What a check found; numbers as QEMU's `ImageCheck` has them."""

    messages: list[str]
    leaks: int = 0
    corruptions: int = 0
    check_errors: int = 0
    leaks_fixed: int = 0
    corruptions_fixed: int = 0
    image_end_offset: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0

    @property
    def is_sound(self) -> bool:
        """Nothing is left that is wrong."""
        return not (self.leaks or self.corruptions or self.check_errors)


def check(image: Qcow2Image, entries: list[Entry], repair: str | None) -> CheckResult:
    """Check an image, and repair `"leaks"` or `"all"` of what is wrong."""
    if repair not in (None, "leaks", "all"):
        raise DiskError(f"{image.name}: cannot repair {repair!r}; give leaks or all")
    if repair is not None:
        check_writable(image)
    found = _scan(image, entries)
    before = _result(image, found)
    if repair is None or before.is_sound:
        if repair is not None:
            _unmark(image)
        return before
    if repair == "all":
        _repair_all(image, entries, found)
    else:
        image.disk.set_refcounts(_leaks(found))
    after = _result(image, _scan(image, entries))
    if repair == "all" and after.is_sound:
        _unmark(image)
    return after._replace(
        leaks_fixed=max(0, before.leaks - after.leaks),
        corruptions_fixed=max(0, before.corruptions - after.corruptions),
        messages=before.messages,
    )


def _scan(image: Qcow2Image, entries: list[Entry]) -> dict[str, Any]:
    return image.disk.check(*references(image, entries))


def references(
    image: Qcow2Image, entries: list[Entry]
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """L1 tables of the snapshots, and what else is in use that only Python knows."""
    l1_tables = [(entry.l1_offset, entry.l1_entries) for entry in entries]
    others = [(image.header.snapshots_offset, table_bytes(image.file, image.header))]
    if image.header.autoclear & Autoclear.BITMAPS:
        from ostler.block.formats.qcow2.bitmaps import places

        others += places(image.file, image.header)
    if image.header.crypt_method:
        from ostler.block.formats.qcow2 import encryption

        others += encryption.places(image.header)
    return l1_tables, others


def _result(image: Qcow2Image, found: dict[str, Any]) -> CheckResult:
    messages = list(found["messages"])
    leaks = corruptions = 0
    for first, count, refcount, references in found["differences"]:
        is_leak = refcount > references
        leaks += count if is_leak else 0
        corruptions += 0 if is_leak else count
        if len(messages) < 400:
            kind = "Leaked cluster" if is_leak else "ERROR cluster"
            which = f"{first}" if count == 1 else f"{first} to {first + count - 1}"
            messages.append(f"{kind} {which} refcount={refcount} reference={references}")
    corruptions += found["wrong_flags"] + found["uncounted"] + found["behind_end"]
    corruptions += len(found["bad_l1"]) + len(found["bad_l2"]) + len(found["bad_blocks"])
    if found["wrong_flags"]:
        messages.append(f"ERROR OFLAG_COPIED of {found['wrong_flags']} entries")
    if found["uncounted"]:
        messages.append(f"ERROR {found['uncounted']} clusters are not counted by any block")
    return CheckResult(
        leaks=leaks,
        corruptions=corruptions,
        image_end_offset=found["image_end"],
        total_clusters=-(-image.size_bytes // image.header.cluster_bytes),
        allocated_clusters=found["allocated"],
        fragmented_clusters=found["fragmented"],
        compressed_clusters=found["compressed"],
        messages=messages,
    )


def _leaks(found: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [(first, n, want) for first, n, have, want in found["differences"] if have > want]


def _repair_all(image: Qcow2Image, entries: list[Entry], found: dict[str, Any]) -> None:
    for index in found["bad_l1"]:
        image.disk.clear_l1_entry(index)
    for table, index in found["bad_l2"]:
        image.disk.clear_l2_entry(table, index)
    if found["bad_l1"] or found["bad_l2"]:
        found = _scan(image, entries)
    if found["uncounted"] or found["bad_blocks"]:
        image.disk.rebuild_refcounts(*references(image, entries))
    else:
        # Missing counts first: nothing in use is ever free.
        more = [(at, n, want) for at, n, have, want in found["differences"] if have < want]
        image.disk.set_refcounts(more)
        image.disk.set_refcounts(_leaks(found))
    image.disk.refresh_flags()


def _unmark(image: Qcow2Image) -> None:
    """The image is sound: the header need not say otherwise."""
    marks = Incompatible.DIRTY | Incompatible.CORRUPT
    if image.header.incompatible & marks:
        image.disk.settle()
        image.header.incompatible &= ~marks
        image.write_header()

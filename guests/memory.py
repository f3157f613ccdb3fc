"""How much memory a running machine takes of its host beyond its guest's."""

from __future__ import annotations

import re
from pathlib import Path

HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")
KIB = 1024


def beyond_guest_bytes(pid: int, guest_bytes: int) -> int:
    """Resident memory of process `pid`, all but the mapping that is a guest of `guest_bytes`.

    That is the largest mapping; where it has been cut up, as by huge pages, so are its parts, which
    together are not larger than the guest. `ValueError` where none is large enough.
    """
    mappings = sorted(_mappings(Path(f"/proc/{pid}/smaps").read_text()), reverse=True)
    rest, left = sum(resident for _, resident in mappings), guest_bytes
    if not mappings or mappings[0][0] < guest_bytes / 2:
        raise ValueError(f"process {pid} has no mapping for a guest of {guest_bytes} bytes")
    for size, resident in mappings:
        if size > left or size < guest_bytes / 64:
            break
        rest, left = rest - resident, left - size
    return rest


def _mappings(smaps: str) -> list[tuple[int, int]]:
    """Size and resident bytes of each mapping."""
    found: list[tuple[int, int]] = []
    size = 0
    for line in smaps.splitlines():
        name, _, value = line.partition(":")
        if name == "Size" and not HEADER.match(line):
            size = int(value.split()[0]) * KIB
        elif name == "Rss":
            found.append((size, int(value.split()[0]) * KIB))
    return found

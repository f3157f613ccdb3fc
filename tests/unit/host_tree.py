"""Another host: files under a directory, and what its kernel answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ostler.host.view import HostView


def make_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write `files` by their path under `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


class FakeHost(HostView):
    """A host of the files under `root`; without limits but those in `limits`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self.limits: dict[str, int] = {}

    def limit(self, name: str) -> int | None:
        return self.limits.get(name)

"""Another host: files under a directory, and what its kernel answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ostler.host.speed import Speed
from ostler.host.view import HostView


def make_tree(root: Path, files: Mapping[str, str | None]) -> Path:
    """Write `files` by their path under `root`; remove those without content."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_text(content + "\n")
    return root


class FakeHost(HostView):
    """A host of the files under `root`; its kernel refuses nothing but what a test changes.

    Without limits but those in `limits`; `refused` are the errors of devices by path.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self.limits: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.landlock: int | OSError = 4
        self.userfaultfd: OSError | None = None
        self.io_uring: OSError | None = None
        self.capabilities: dict[str, int] | str = {}
        self.speed: Speed | str = Speed(5000, 900)

    def limit(self, name: str) -> int | None:
        return self.limits.get(name)

    def open_error(self, path: str) -> OSError | None:
        if path in self.refused:
            return OSError(self.refused[path], "refused by the test")
        return super().open_error(path)

    def landlock_abi(self) -> int | OSError:
        return self.landlock

    def userfaultfd_error(self) -> OSError | None:
        return self.userfaultfd

    def io_uring_error(self) -> OSError | None:
        return self.io_uring

    def kvm_capabilities(self) -> dict[str, int] | str:
        return self.capabilities

    def kvm_speed(self) -> Speed | str:
        return self.speed

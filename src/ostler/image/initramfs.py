"""An initramfs: the file tree that a Linux kernel starts its first program from.

image = Initramfs()
image.archive.add_file("/bin/busybox", Path("/bin/busybox"))
image.add_init(Path("init.sh"))
image.add_modules(ModuleTree(Path("/lib/modules/6.1.0-56-cloud-amd64")), ["virtio_blk"])
image.write(Path("initrd.gz"), compression="gzip")
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ostler.errors import ConfigError
from ostler.image.compress import compress
from ostler.image.cpio import Archive
from ostler.image.first_program import problem
from ostler.image.modules import ModuleTree

LOAD_ORDER = "/etc/modules.order"
"""A file with one module path a line: the order in which `init` has to insert them."""


class Initramfs:
    """Collects the tree in memory; it starts with `/dev/console` and `/dev/null`.

    Args:
        mtime: modification time of every entry, in seconds since 1970.
    """

    def __init__(self, *, mtime: int = 0) -> None:
        self._bytes = io.BytesIO()
        self.archive = Archive(self._bytes, mtime=mtime)
        self._order: list[str] = []
        self._closed = False
        self.archive.add_node("/dev/console", "char", 5, 1, mode=0o600)
        self.archive.add_node("/dev/null", "char", 1, 3, mode=0o666)

    def add_init(self, script: Path) -> None:
        """Make a copy of `script`, executable, the first program: `/init`."""
        self.archive.add_file("/init", script, mode=0o755)

    def problem(self) -> str | None:
        """Why Linux could not start `/init` from this image, with the cure; `None` if it can."""
        return problem(self.archive)

    def add_modules(self, tree: ModuleTree, names: Iterable[str]) -> list[str]:
        """Add modules with all they need, as they are, and list them in `LOAD_ORDER`.

        Returns:
            Their paths in the image, in the order of insertion.

        Raises:
            ConfigError: a module is not in the tree.
        """
        added = []
        for source in tree.resolve(names):
            name = f"/lib/modules/{tree.version}/{source.relative_to(tree.root)}"
            if name not in self.archive:
                self.archive.add_file(name, source, mode=0o644)
                added.append(name)
        self._order += added
        return added

    def to_bytes(self, compression: str = "gzip") -> bytes:
        """The finished image; nothing can be added afterwards.

        Raises:
            ConfigError: `compression` is none of `ostler.image.COMPRESSIONS`.
        """
        if not self._closed:
            if self._order:
                lines = "".join(f"{name}\n" for name in self._order)
                self.archive.add_bytes(LOAD_ORDER, lines.encode())
            self.archive.close()
            self._closed = True
        return compress(self._bytes.getvalue(), compression)

    def write(self, path: Path, compression: str = "gzip") -> int:
        """Write the image to `path`, in one step: what was there stays until all is written.

        Returns:
            Its size in bytes.

        Raises:
            ConfigError: `path` cannot be written, or `compression` is unknown.
        """
        data = self.to_bytes(compression)
        try:
            _replace(path, data)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; name a place to write to") from error
        return len(data)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise

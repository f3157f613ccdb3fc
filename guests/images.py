"""Initial file systems and disks for the test guests, under `build/guests/`."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from guests.fetch import Kernel, busybox
from guests.packages import BUILD, FetchError
from ostler.image import Initramfs, ModuleTree

SOURCES = Path(__file__).parent
LEASE_SCRIPT = "/etc/udhcpc/default.script"
DRIVERS = (
    "virtio_pci", "virtio_blk", "virtio_rng", "virtio_console", "virtio_net", "virtio_balloon",
    "pvpanic_mmio", "ext4",
)  # fmt: skip


def initrd(
    kernel: Kernel,
    init: Path = SOURCES / "init/shell",
    *,
    programs: dict[str, Path] | None = None,
    drivers: tuple[str, ...] = (),
) -> Path:
    """An initramfs of busybox, the virtio drivers of `kernel`, `programs` by name, and `init`.

    `drivers` are modules to insert besides those every guest gets.

    It is made anew when anything in it changed, and kept under a name that says so.
    """
    files = {"/bin/busybox": busybox(), LEASE_SCRIPT: SOURCES / "init/udhcpc", **(programs or {})}
    modules = (*DRIVERS, *drivers)
    target = BUILD / f"initrd-{kernel.version}-{_fingerprint(modules, init, *files.values())}.gz"
    if target.exists():
        return target
    image = Initramfs()
    for name, source in files.items():
        image.archive.add_file(name, source, mode=0o755)
    image.add_init(init)
    image.add_modules(ModuleTree(kernel.modules), modules)
    image.write(target)
    return target


def ext4(path: Path, files: dict[str, bytes], size_bytes: int = 16 << 20) -> Path:
    """Make `path` an ext4 disk without partitions that holds `files`."""
    with tempfile.TemporaryDirectory() as root:
        for name, content in files.items():
            place = Path(root, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        ext4_of_tree(path, Path(root), size_bytes)
    return path


def ext4_of_tree(path: Path, root: Path, size_bytes: int) -> None:
    """Make `path` an ext4 disk without partitions that holds what is under `root`.

    Raises:
        FetchError: mke2fs is missing, or says why it cannot.
    """
    tool = shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin")
    if tool is None:
        raise FetchError("mke2fs: missing; apt-get install e2fsprogs")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("wb") as disk:
        disk.truncate(size_bytes)
    done = subprocess.run(
        [tool, "-q", "-F", "-t", "ext4", "-m", "0", "-d", str(root), str(path)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise FetchError(f"mke2fs: {done.stderr.strip()}")


def _fingerprint(modules: tuple[str, ...], *files: Path) -> str:
    digest = hashlib.sha256(" ".join(modules).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]

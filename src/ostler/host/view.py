"""The host's files and what its kernel answers, so that checks can be shown another host."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

from ostler.errors import OstlerError

if TYPE_CHECKING:
    from ostler.host.speed import Speed

LIMITS = {
    "address space": resource.RLIMIT_AS,
    "open files": resource.RLIMIT_NOFILE,
    "locked memory": resource.RLIMIT_MEMLOCK,
    "processes": resource.RLIMIT_NPROC,
}


class HostView:
    """Reads below `root`, where `/proc`, `/sys` and `/dev` are looked for, and asks this kernel."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def text(self, path: str) -> str | None:
        """A file's text without white space around it; `None` where it cannot be read."""
        try:
            return self._at(path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The decimal number a file holds; `None` where there is none."""
        text = self.text(path)
        return int(text) if text is not None and text.lstrip("-").isdecimal() else None

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted; nothing where it cannot be read."""
        try:
            return sorted(os.listdir(self._at(path)))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return self._at(path).exists()

    def target(self, path: str) -> str | None:
        """The last name of what a symbolic link leads to."""
        try:
            return os.path.basename(os.readlink(self._at(path)))
        except OSError:
            return None

    def open_error(self, path: str) -> OSError | None:
        """What the host says when a device is opened for reading and writing; `None` is success."""
        try:
            os.close(os.open(self._at(path), os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return error
        return None

    def limit(self, name: str) -> int | None:
        """This process's soft limit of one of `LIMITS`; `None` where there is none."""
        soft, _ = resource.getrlimit(LIMITS[name])
        return None if soft == resource.RLIM_INFINITY else soft

    def landlock_abi(self) -> int | OSError:
        """The version of Landlock, or why there is none."""
        from ostler.host import probes

        return probes.landlock_abi()

    def userfaultfd_error(self) -> OSError | None:
        """Why this user may have no userfaultfd for the kernel's accesses; `None` if they may."""
        from ostler.host import probes

        return probes.userfaultfd_error()

    def io_uring_error(self) -> OSError | None:
        """Why this user may have no io_uring; `None` if they may."""
        from ostler.host import probes

        return probes.io_uring_error()

    def kvm_capabilities(self) -> dict[str, int] | str:
        """What `KVM_CHECK_EXTENSION` answers by name without `KVM_CAP_`, or why nothing does."""
        from ostler.host import probes

        try:
            return probes.kvm_capabilities()
        except OSError as error:
            return f"/dev/kvm: {error.strerror}"

    def kvm_speed(self) -> Speed | str:
        """How fast `/dev/kvm` runs kernel mode, or why it runs nothing."""
        from ostler.host.speed import measure

        try:
            return measure("kvm")
        except OstlerError as error:
            return str(error)


def cpu_mhz(host: HostView) -> float | None:
    """The clock of the first processor at this moment, in MHz."""
    for line in (host.text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "cpu MHz":
            return float(value) if value.strip().replace(".", "", 1).isdecimal() else None
    return None


def meminfo(host: HostView) -> dict[str, int]:
    """`/proc/meminfo` in bytes (counts, as `HugePages_Total`, as they are)."""
    found: dict[str, int] = {}
    for line in (host.text("/proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        match rest.split():
            case [number, "kB"] if number.isdecimal():
                found[name] = int(number) << 10
            case [number] if number.isdecimal():
                found[name] = int(number)
    return found

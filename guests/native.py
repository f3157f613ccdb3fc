"""Compiles the test guests' C and assembly, with the host's gcc."""

from __future__ import annotations

import subprocess
from pathlib import Path

from guests.packages import BUILD, FetchError, only_one

SOURCES = Path(__file__).parent

FREESTANDING = (
    "-O1", "-ffreestanding", "-fno-stack-protector", "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables", "-mgeneral-regs-only", "-mno-red-zone", "-fpie",
    "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
)  # fmt: skip


def bench() -> Path:
    """The benchmark program of a Linux guest, static."""
    return _made("bench", ["-O2", "-static"], *sorted((SOURCES / "bench").glob("*.c")))


def vsock() -> Path:
    """The Linux guest's end of a vsock, static."""
    return _made("vsock", ["-O1", "-static"], SOURCES / "vsock/vsock.c")


def talk() -> Path:
    """Many connections and datagrams, for guests and their peers, static."""
    return _made("talk", ["-O1", "-static", "-w"], SOURCES / "network/talk.c")


def disk() -> Path:
    """Requests to the disks of a Linux guest, timed, static."""
    return _made("diskbench", ["-O2", "-static"], SOURCES / "disk/diskbench.c")


def smp() -> Path:
    """Work for several CPUs that checks itself, for a Linux guest, static."""
    return _made("smp", ["-O2", "-static", "-pthread"], SOURCES / "smp/smp.c")


def system() -> Path:
    """The system-mode tests: a multiboot image that needs no operating system."""
    folder = SOURCES / "system"
    sources = sorted([*folder.glob("*.S"), *folder.glob("*.c")])
    linked = _made("system.elf64", [*FREESTANDING, "-T", str(folder / "link.ld")], *sources)
    image = linked.with_name("system.elf")
    # Multiboot 1 loaders take ELF in its 32-bit form only, whatever the code inside.
    _run(["objcopy", "-I", "elf64-x86-64", "-O", "elf32-i386", str(linked), str(image)])
    return image


def _made(name: str, options: list[str], *sources: Path) -> Path:
    target = BUILD / name
    with only_one("compile"):
        _run(["gcc", "-Wall", "-Wextra", *options, "-o", str(target), *map(str, sources)])
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip()
        raise FetchError(f"{command[0]}: {said}; apt-get install gcc libc6-dev binutils")

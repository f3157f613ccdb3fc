"""A boot plan: what to write into guest memory and how the first CPU starts, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from ostler.errors import KernelError
from ostler.registers import Regs, Sregs

Buffer = bytes | bytearray | memoryview

Sink = Callable[[int, Buffer], object]
"""Takes bytes and the offset at which they lie in a whole; they are valid during the call."""

E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
E820_NVS = 4

PAGE = 0x1000


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """A row of the E820 map: `size` bytes at guest physical `base`, of type `kind` (`E820_*`)."""

    base: int
    size: int
    kind: int = E820_RAM

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.base + self.size


class Stream(Protocol):
    """Bytes that are not in memory yet, such as a packed kernel."""

    def unpack(self, sink: Sink) -> None:
        """Hand all of them to `sink`, in pieces of any order and perhaps on several threads."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """`size` bytes at `offset` of a stream."""

    stream: Stream
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        """The bytes, for those who look at one part only; `KernelError` when damaged."""
        data = bytearray(self.size)

        def store(offset: int, piece: Buffer) -> None:
            data[offset : offset + len(piece)] = piece

        self.stream.unpack(self.sink(store))
        return bytes(data)

    def sink(self, store: Sink) -> Sink:
        """For `Stream.unpack`: gives `store` what lies in this part, by offset within it."""

        def take(offset: int, piece: Buffer) -> None:
            start = max(offset, self.offset)
            end = min(offset + len(piece), self.offset + self.size)
            if start < end:
                store(start - self.offset, memoryview(piece)[start - offset : end - offset])

        return take


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes for guest physical `gpa`, then `zero_bytes` zeros (bss; RAM may not be fresh)."""

    gpa: int
    data: Buffer | Part
    what: str
    zero_bytes: int = 0

    @property
    def end(self) -> int:
        """The address after the last byte, zeros included."""
        return self.gpa + len(self.data) + self.zero_bytes


@dataclass(frozen=True, slots=True)
class Module:
    """A file handed over with the kernel (initrd, multiboot module) and its own command line."""

    data: Buffer
    cmdline: str = ""


@dataclass(frozen=True, slots=True)
class Handover:
    """What the machine gives every kind of kernel.

    `memory_map` is in ascending order of `base`; `rsdp_gpa` is 0 where there are no ACPI tables;
    `modules[0]` is the initrd where the kernel's protocol has one.
    """

    memory_map: Sequence[MemoryRange]
    cmdline: str = ""
    modules: Sequence[Module] = ()
    rsdp_gpa: int = 0


@dataclass(frozen=True, slots=True)
class BootPlan:
    """What to write (`loads`, in any order; they do not overlap) and the first CPU's state.

    Of `sregs`, the APIC base does not count: it stays as the reset left it.

    `protocol` names how the kernel is entered, for people: `linux64`, `linux32`, `pvh` or
    `multiboot`; `kernel` is what messages call the image.
    """

    protocol: str
    loads: tuple[Load, ...]
    regs: Regs
    sregs: Sregs
    kernel: str = "the image"


def check_loads(loads: Iterable[Load], memory_map: Sequence[MemoryRange]) -> tuple[Load, ...]:
    """The loads in ascending order; `KernelError` when one overlaps another or is not in RAM."""
    ordered = tuple(
        sorted((load for load in loads if load.end > load.gpa), key=lambda load: load.gpa)
    )
    for below, above in pairwise(ordered):
        if below.end > above.gpa:
            raise KernelError(
                f"cannot be loaded: {above.what} at {above.gpa:#x} and {below.what} at"
                f" {below.gpa:#x} overlap;"
                " link the kernel at 1 MiB or higher or give the guest more --memory"
            )
    for load in ordered:
        if not any(
            r.kind == E820_RAM and r.base <= load.gpa and load.end <= r.end for r in memory_map
        ):
            raise KernelError(
                f"cannot be loaded: {load.what} at {load.gpa:#x}-{load.end:#x} is not within"
                " the guest's RAM; give the guest more --memory"
            )
    return ordered


def place_high(
    size: int, memory_map: Sequence[MemoryRange], above: int, below: int, what: str
) -> int:
    """The highest page of RAM from `above` on where `size` bytes end by `below`."""
    for row in sorted(memory_map, key=lambda row: row.base, reverse=True):
        gpa = (min(row.end, below) - size) & -PAGE
        if row.kind == E820_RAM and gpa >= max(row.base, above):
            return gpa
    raise KernelError(
        f"cannot be loaded: {what} of {size} bytes does not fit into the guest's RAM beside"
        " the kernel; give the guest more --memory"
    )

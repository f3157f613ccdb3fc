"""Why `Vcpu.run` returned, one class per reason, made for `match`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class IoIn:
    """`IN`: answer with `Vcpu.supply_read` of `size` bytes (1, 2 or 4)."""

    port: int
    size: int

    def __repr__(self) -> str:
        return f"IoIn(port={self.port:#x}, size={self.size})"


@dataclass(frozen=True, slots=True)
class IoOut:
    """`OUT` of 1, 2 or 4 bytes; done when this is seen."""

    port: int
    data: bytes

    @property
    def value(self) -> int:
        """The data as a number."""
        return int.from_bytes(self.data, "little")

    def __repr__(self) -> str:
        return f"IoOut(port={self.port:#x}, data={self.data!r})"


@dataclass(frozen=True, slots=True)
class MmioRead:
    """A load from where no memory is: answer with `Vcpu.supply_read` of `size` (1-8) bytes."""

    gpa: int
    size: int

    def __repr__(self) -> str:
        return f"MmioRead(gpa={self.gpa:#x}, size={self.size})"


@dataclass(frozen=True, slots=True)
class MmioWrite:
    """A store of 1-8 bytes to where no writable memory is; done when this is seen."""

    gpa: int
    data: bytes

    @property
    def value(self) -> int:
        """The data as a number."""
        return int.from_bytes(self.data, "little")

    def __repr__(self) -> str:
        return f"MmioWrite(gpa={self.gpa:#x}, data={self.data!r})"


@dataclass(frozen=True, slots=True)
class Hlt:
    """HLT in a VM without interrupt controllers. The instruction is done."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """A triple fault: the processor is in shutdown until its `mp_state` is set."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """`Vcpu.kick` was called."""


@dataclass(frozen=True, slots=True)
class Debug:
    """A breakpoint or single step that `Vcpu.set_guest_debug` asked for."""

    rip: int
    dr6: int
    exception: int
    """1 (#DB) or 3 (#BP)."""

    def __repr__(self) -> str:
        return f"Debug(rip={self.rip:#x}, dr6={self.dr6:#x}, exception={self.exception})"


@dataclass(frozen=True, slots=True)
class InternalError:
    """The accelerator or a device cannot go on: a defect of theirs, not of the guest's."""

    text: str
    """What happened; for an exception of a Python device, its traceback."""


Exit: TypeAlias = (
    IoIn | IoOut | MmioRead | MmioWrite | Hlt | Shutdown | Interrupted | Debug | InternalError
)

"""The register sets of a vCPU and of the interrupt controllers, as `/dev/kvm` groups them.

Plain dataclasses with the manuals' names: read one from a vCPU, change it, write it back. Numbers
are unsigned and have the register's width unless a field says otherwise.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

XSAVE_HEADER = 512
"""Where the XSAVE header (first XSTATE_BV) is in the image (Intel SDM 1, 13.4)."""
XSAVE_AVX = 576
"""Where the upper halves of the YMM registers are in the standard image."""
XSTATE_X87, XSTATE_SSE, XSTATE_AVX = 1, 2, 4


def _hex(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_hex, value))})"
    return repr(value)


class Registers:
    """Base of the register sets: numbers are shown in hexadecimal."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __repr__(self) -> str:
        names = [entry.name for entry in fields(self)]
        shown = ", ".join(f"{name}={_hex(getattr(self, name))}" for name in names)
        return f"{type(self).__name__}({shown})"


@dataclass(slots=True, repr=False)
class Regs(Registers):
    """General-purpose registers, RIP and RFLAGS."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass(slots=True, repr=False)
class Segment(Registers):
    """A segment register with its hidden part."""

    base: int = 0
    limit: int = 0
    """In bytes, after the granularity was applied."""
    selector: int = 0
    kind: int = 0
    """The descriptor's 4-bit type field."""
    present: bool = False
    dpl: int = 0
    db: bool = False
    """The D/B bit: 32-bit code or stack."""
    s: bool = False
    """Code or data, not a system segment."""
    l: bool = False  # noqa: E741 - the manual's name
    """64-bit code."""
    g: bool = False
    """Limit in pages."""
    avl: bool = False
    unusable: bool = False
    """The register holds a null selector or one that may not be used."""


@dataclass(slots=True, repr=False)
class DescriptorTable(Registers):
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0


@dataclass(slots=True, repr=False)
class Sregs(Registers):
    """Segment, descriptor-table and control registers."""

    cs: Segment = field(default_factory=Segment)
    ds: Segment = field(default_factory=Segment)
    es: Segment = field(default_factory=Segment)
    fs: Segment = field(default_factory=Segment)
    gs: Segment = field(default_factory=Segment)
    ss: Segment = field(default_factory=Segment)
    tr: Segment = field(default_factory=Segment)
    ldt: Segment = field(default_factory=Segment)
    gdt: DescriptorTable = field(default_factory=DescriptorTable)
    idt: DescriptorTable = field(default_factory=DescriptorTable)
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0
    pdptrs: tuple[int, ...] | None = None
    """The page directory pointers of PAE paging as CR3 loaded them, where they are in use; `None`
    loads them from memory."""


@dataclass(slots=True, repr=False)
class DebugRegs(Registers):
    """DR0-DR3 (`db`), DR6 and DR7."""

    db: tuple[int, int, int, int] = (0, 0, 0, 0)
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400


@dataclass(slots=True)
class XsaveArea:
    """x87, SSE and AVX registers as the standard (not compacted) XSAVE image."""

    data: bytes

    def _bytes(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def _put(self, offset: int, value: bytes, component: int) -> None:
        """Store `value` and mark `component` as present in XSTATE_BV."""
        image = bytearray(self.data)
        image[offset : offset + len(value)] = value
        image[XSAVE_HEADER] |= component
        self.data = bytes(image)

    def _present(self, component: int) -> bool:
        return bool(self.data[XSAVE_HEADER] & component)

    def st(self, number: int) -> bytes:
        """The 10 bytes of x87 register ST(`number`), little-endian."""
        return self._bytes(32 + 16 * _index(number, 8), 10)

    def set_st(self, number: int, value: bytes) -> None:
        """Set x87 register ST(`number`) to 10 bytes; tag and control words stay."""
        self._put(32 + 16 * _index(number, 8), _exactly(value, 10), XSTATE_X87)

    def xmm(self, number: int) -> bytes:
        """The 16 bytes of XMM register `number`, little-endian."""
        return self._bytes(160 + 16 * _index(number, 16), 16)

    def set_xmm(self, number: int, value: bytes) -> None:
        """Set XMM register `number` to 16 bytes; the upper half of the YMM register stays."""
        self._put(160 + 16 * _index(number, 16), _exactly(value, 16), XSTATE_SSE)

    def ymm(self, number: int) -> bytes:
        """The 32 bytes of YMM register `number`, little-endian."""
        upper = bytes(16)
        if self._present(XSTATE_AVX):
            upper = self._bytes(XSAVE_AVX + 16 * _index(number, 16), 16)
        return self.xmm(number) + upper

    def set_ymm(self, number: int, value: bytes) -> None:
        """Set YMM register `number` to 32 bytes."""
        value = _exactly(value, 32)
        if len(self.data) < XSAVE_AVX + 256:
            raise ValueError("this XSAVE image has no AVX part")
        self.set_xmm(number, value[:16])
        if not self._present(XSTATE_AVX):
            self._put(XSAVE_AVX, bytes(256), XSTATE_AVX)
        self._put(XSAVE_AVX + 16 * number, value[16:], XSTATE_AVX)

    @property
    def fcw(self) -> int:
        """The x87 control word."""
        return int.from_bytes(self._bytes(0, 2), "little")

    @property
    def fsw(self) -> int:
        """The x87 status word."""
        return int.from_bytes(self._bytes(2, 2), "little")

    @property
    def mxcsr(self) -> int:
        """The SSE control and status register."""
        return int.from_bytes(self._bytes(24, 4), "little")


def _index(number: int, count: int) -> int:
    if not 0 <= number < count:
        raise IndexError(f"there is no register {number}; the last is {count - 1}")
    return number


def _exactly(value: bytes, length: int) -> bytes:
    if len(value) != length:
        raise ValueError(f"expected {length} bytes, got {len(value)}")
    return value


@dataclass(slots=True, repr=False)
class CpuidEntry(Registers):
    """One row of what CPUID answers."""

    function: int
    index: int = 0
    significant_index: bool = False
    """Whether ECX selects among several rows of this function."""
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


@dataclass(slots=True, repr=False)
class Events(Registers):
    """Exceptions and interrupts under way."""

    exception: tuple[int, int | None] | None = None
    """To deliver before the next instruction: vector and error code."""
    interrupt: int | None = None
    """An external interrupt accepted but not delivered."""
    nmi_pending: bool = False
    nmi_masked: bool = False
    """NMIs are blocked until IRET."""
    interrupt_shadow: bool = False
    """Interrupts are blocked for one instruction, by STI or by MOV SS."""
    sipi_vector: int = 0


class MpState(Enum):
    """What a vCPU is doing."""

    RUNNABLE = "runnable"
    UNINITIALIZED = "uninitialized"
    """An application processor before its first INIT."""
    INIT_RECEIVED = "init-received"
    """After INIT, waiting for a SIPI."""
    HALTED = "halted"


@dataclass(slots=True)
class LapicState:
    """A local APIC's 1024 bytes of registers: one 32-bit register at each 16 bytes."""

    regs: bytes

    def register(self, offset: int) -> int:
        """The register at `offset` (a multiple of 16) of the APIC page: 0x20 is the ID."""
        return int.from_bytes(self.regs[offset : offset + 4], "little")


@dataclass(slots=True, repr=False)
class GuestDebug(Registers):
    """What a debugger outside the guest asks for."""

    single_step: bool = False
    software_breakpoints: bool = False
    """`INT3` becomes a `Debug` exit."""
    hardware_breakpoints: tuple[tuple[int, int, int, int], int] | None = None
    """DR0-DR3 and DR7 in place of the guest's."""


@dataclass(slots=True, repr=False)
class PicState(Registers):
    """One 8259, with the fields of `struct kvm_pic_state`."""

    last_irr: int = 0
    irr: int = 0
    imr: int = 0
    isr: int = 0
    priority_add: int = 0
    irq_base: int = 0
    read_reg_select: int = 0
    poll: int = 0
    special_mask: int = 0
    init_state: int = 0
    auto_eoi: int = 0
    rotate_on_auto_eoi: int = 0
    special_fully_nested_mode: int = 0
    init4: int = 0
    elcr: int = 0
    elcr_mask: int = 0


@dataclass(slots=True, repr=False)
class IoapicState(Registers):
    """The 82093AA, with the fields of `struct kvm_ioapic_state`."""

    base_address: int = 0xFEC0_0000
    ioregsel: int = 0
    id: int = 0
    irr: int = 0
    redirtbl: tuple[int, ...] = (1 << 16,) * 24
    """24 entries; masked after reset."""


@dataclass(slots=True, repr=False)
class PitChannelState(Registers):
    """One counter of the 8254, with the fields of `struct kvm_pit_channel_state`."""

    count: int = 0
    """0x10000 stands for the counter value 0."""
    latched_count: int = 0
    count_latched: int = 0
    status_latched: int = 0
    status: int = 0
    read_state: int = 0
    write_state: int = 0
    write_latch: int = 0
    rw_mode: int = 0
    mode: int = 0
    bcd: int = 0
    gate: int = 0
    count_load_time_ns: int = 0
    """Signed: nanoseconds of the VM's clock at which the count was loaded."""


@dataclass(slots=True, repr=False)
class IrqchipState(Registers):
    """PIC, IOAPIC and PIT."""

    pics: tuple[PicState, PicState]
    """Master, slave."""
    ioapic: IoapicState
    pit: tuple[PitChannelState, PitChannelState, PitChannelState]
    speaker: int = 0
    """Port 0x61: speaker data and the gate of counter 2."""

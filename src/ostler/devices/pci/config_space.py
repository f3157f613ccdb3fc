"""The type 0 configuration space of a PCI function (PCI Local Bus Specification 3.0, chapter 6).

A layout is what the hardware is: the value of each register after power-up and which bits a store
changes. The guest's configuration space is a `bytes` of 256 in the device's state; layouts compute
the next one and never keep it. BAR sizing needs no code of its own: the low bits do not store.

Not modelled: expansion ROMs, the PCIe extended space (reads give ones), CardBus, self test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ostler.errors import StateError

CONFIG_BYTES = 256

COMMAND = 0x04
COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
COMMAND_WRITABLE = (
    COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | 1 << 6 | 1 << 8 | COMMAND_INTX_DISABLE
)
STATUS = 0x06
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
STATUS_CLEAR_ON_ONE = 0xF900
CACHE_LINE_SIZE = 0x0C
LATENCY_TIMER = 0x0D
BAR0 = 0x10
BAR_COUNT = 6
SUBSYSTEM = 0x2C
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
FIRST_CAPABILITY = 0x40

BarKind = Literal["io", "mem32", "mem64"]
_BAR_FLAGS: dict[BarKind, int] = {"io": 0b01, "mem32": 0b0000, "mem64": 0b0100}
_BAR_MINIMUM_BYTES: dict[BarKind, int] = {"io": 4, "mem32": 16, "mem64": 16}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a function says it is. `class_code` is class, subclass and interface: 24 bits."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0
    interrupt_pin: int = 0
    """0 for none, 1 to 4 for INTA to INTD."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register: `size` bytes, a power of two. A mem64 BAR takes `index` + 1 too."""

    index: int
    size: int
    kind: BarKind = "mem32"
    prefetchable: bool = False

    def __post_init__(self) -> None:
        last = self.index + (self.kind == "mem64")
        if not 0 <= self.index <= last < BAR_COUNT:
            raise ValueError(f"BAR {self.index} does not exist")
        if self.size & (self.size - 1) or self.size < _BAR_MINIMUM_BYTES[self.kind]:
            raise ValueError(f"BAR {self.index}: {self.size} is not a size a BAR can have")

    @property
    def offset(self) -> int:
        """Of the register in configuration space."""
        return BAR0 + 4 * self.index

    @property
    def width(self) -> int:
        """Of the register in bytes."""
        return 8 if self.kind == "mem64" else 4

    @property
    def limit(self) -> int:
        """One past the last address the register can hold."""
        return {"io": 1 << 16, "mem32": 1 << 32, "mem64": 1 << 52}[self.kind]

    @property
    def flags(self) -> int:
        """The read-only low bits."""
        return _BAR_FLAGS[self.kind] | (self.prefetchable << 3)

    def base(self, config: bytes) -> int | None:
        """Where the guest has put it; `None` while it decodes nothing."""
        command = int.from_bytes(config[COMMAND : COMMAND + 2], "little")
        if not command & (COMMAND_IO if self.kind == "io" else COMMAND_MEMORY):
            return None
        register = int.from_bytes(config[self.offset : self.offset + self.width], "little")
        base = register & ~(self.size - 1) & ~(0x3 if self.kind == "io" else 0xF)
        # An address of 0 is "not assigned"; all ones is what sizing leaves for a moment.
        return base if 0 < base <= self.limit - self.size else None


class ConfigLayout:
    """What a function's configuration space is made of: reset values and writable bits."""

    def __init__(self, identity: Identity, bars: tuple[Bar, ...] = ()) -> None:
        self.bars = bars
        self._initial = bytearray(CONFIG_BYTES)
        self._writable = bytearray(CONFIG_BYTES)
        self._next_capability = FIRST_CAPABILITY
        self._link = CAPABILITIES
        self._define(0x00, identity.vendor, 2)
        self._define(0x02, identity.device, 2)
        self._define(COMMAND, 0, 2, COMMAND_WRITABLE)
        self._define(0x08, identity.revision | identity.class_code << 8, 4)
        self._define(CACHE_LINE_SIZE, 0, 1, 0xFF)
        self._define(LATENCY_TIMER, 0, 1, 0xFF)
        self._define(SUBSYSTEM, identity.subsystem_vendor | identity.subsystem << 16, 4)
        self._define(INTERRUPT_PIN, identity.interrupt_pin, 1)
        if identity.interrupt_pin:
            self._define(INTERRUPT_LINE, 0xFF, 1, 0xFF)
        for bar in bars:
            sized = ~(bar.size - 1) & ((1 << 8 * bar.width) - 1)
            self._define(bar.offset, bar.flags, bar.width, sized)

    @property
    def initial(self) -> bytes:
        """The configuration space after power-up."""
        return bytes(self._initial)

    def add_capability(self, number: int, body: bytes, writable: bytes = b"") -> int:
        """Append a capability; `body` follows the two-byte header, `writable` masks it.

        Returns the offset of the header.
        """
        offset = self._next_capability
        end = offset + 2 + len(body)
        if end > CONFIG_BYTES:
            raise ValueError("the capabilities do not fit into 256 bytes")
        self._initial[self._link] = offset
        self._initial[offset:end] = bytes((number, 0)) + body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        self._initial[STATUS] |= STATUS_CAPABILITIES
        self._link = offset + 1
        self._next_capability = (end + 3) & ~3
        return offset

    def stored(self, config: bytes, offset: int, size: int, value: int) -> bytes:
        """The configuration space after a store of `size` bytes at `offset`."""
        changed = bytearray(config)
        for index, byte in enumerate(value.to_bytes(8, "little")[:size], offset):
            if index < CONFIG_BYTES:
                keep = config[index] & ~self._writable[index] & ~(byte & _clear_on_one(index))
                changed[index] = keep | (byte & self._writable[index])
        return bytes(changed)

    def check(self, config: bytes) -> None:
        """Raise `StateError` unless `config` can be this function's."""
        if len(config) != CONFIG_BYTES:
            raise StateError(f"configuration space of {len(config)} bytes, not {CONFIG_BYTES}")
        for index, (old, new) in enumerate(zip(self._initial, config, strict=True)):
            if (old ^ new) & ~self._writable[index]:
                raise StateError(f"configuration space differs at {index:#x}: another device's")

    def _define(self, offset: int, value: int, width: int, writable: int = 0) -> None:
        self._initial[offset : offset + width] = value.to_bytes(width, "little")
        self._writable[offset : offset + width] = writable.to_bytes(width, "little")


def with_register(config: bytes, offset: int, width: int, value: int) -> bytes:
    """`config` with the device's own store of `value`, masks aside."""
    return config[:offset] + value.to_bytes(width, "little") + config[offset + width :]


def register(config: bytes, offset: int, width: int) -> int:
    """The register of `width` bytes at `offset`."""
    return int.from_bytes(config[offset : offset + width], "little")


def _clear_on_one(index: int) -> int:
    return STATUS_CLEAR_ON_ONE >> 8 if index == STATUS + 1 else 0

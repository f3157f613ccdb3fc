"""fw_cfg: named blobs the machine hands to firmware and guest, at ports 0x510 to 0x51B.

Spec: QEMU, docs/specs/fw_cfg.rst, with the DMA interface. All files are read-only, so a DMA write
reports an error, as it does there.

Not modelled: items other than the ones below (no boot order, no kernel blobs), the write flag.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ostler.devices.byte_registers import ByteRegisters
from ostler.devices.device import GuestMemory
from ostler.errors import StateError
from ostler.state import State

PORTS = 12
SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8

SIGNATURE, ID, RAM_BYTES, CPUS, MAX_CPUS, FILE_DIRECTORY = 0x00, 0x01, 0x03, 0x05, 0x0F, 0x19
FIRST_FILE = 0x20
KEY_MASK = 0xBFFF  # bit 14, the old write flag, is ignored
ID_TRADITIONAL_AND_DMA = 0x03
DMA_SIGNATURE = b"QEMU CFG"
NAME_BYTES = 56

DMA_ERROR, DMA_READ, DMA_SKIP, DMA_SELECT, DMA_WRITE = 0x01, 0x02, 0x04, 0x08, 0x10
DMA_ACCESS = struct.Struct(">IIQ")
DMA_CHUNK_BYTES = 1 << 20


@dataclass(slots=True)
class FwCfgState(State):
    """What is selected, how much of it has been read, and the DMA address as far as written."""

    key: int = 0
    offset: int = 0
    dma_address: int = 0

    def validate(self) -> None:
        if not 0 <= self.key <= 0xFFFF:
            raise StateError("fw_cfg: key is not 16 bits wide")
        if not (0 <= self.offset < 1 << 64 and 0 <= self.dma_address < 1 << 64):
            raise StateError("fw_cfg: offset or DMA address is out of range")


def items(ram_bytes: int, cpus: int, files: Mapping[str, bytes]) -> dict[int, bytes]:
    """The blobs by key. `files` get keys from 0x20 up in the order of their names."""
    named = sorted(files.items())
    directory = struct.pack(">I", len(named))
    blobs = {
        SIGNATURE: b"QEMU",
        ID: struct.pack("<I", ID_TRADITIONAL_AND_DMA),
        RAM_BYTES: struct.pack("<Q", ram_bytes),
        CPUS: struct.pack("<H", cpus),
        MAX_CPUS: struct.pack("<H", cpus),
    }
    for key, (name, blob) in enumerate(named, start=FIRST_FILE):
        blobs[key] = blob
        directory += struct.pack(f">IHH{NAME_BYTES}s", len(blob), key, 0, name.encode("ascii"))
    blobs[FILE_DIRECTORY] = directory
    return blobs


class FwCfg(ByteRegisters[FwCfgState]):
    """The interface to `blobs`, which `items` makes."""

    name, State = "fw-cfg", FwCfgState

    def __init__(self, memory: GuestMemory, blobs: Mapping[int, bytes]) -> None:
        super().__init__()
        self.state = FwCfgState()
        self._memory, self._blobs = memory, blobs

    def read(self, offset: int, size: int) -> int:
        if offset == DATA:  # one byte wide; wider reads do not advance it further
            with self.lock:
                return self._take(1)[0]
        return super().read(offset, size)

    def read_byte(self, offset: int) -> int:
        if DMA_HIGH <= offset < PORTS:
            return DMA_SIGNATURE[offset - DMA_HIGH]
        return self._take(1)[0] if offset == DATA else 0

    def write(self, offset: int, size: int, value: int) -> None:
        with self.lock:
            if offset == SELECTOR and size == 2:
                self._select(value)
            elif offset == DMA_HIGH and size == 4:
                self.state.dma_address = _swapped(value) << 32
            elif offset == DMA_LOW and size == 4:
                address, self.state.dma_address = self.state.dma_address | _swapped(value), 0
                self._dma(address)

    def _select(self, key: int) -> None:
        self.state.key, self.state.offset = key & KEY_MASK, 0

    def _take(self, length: int) -> bytes:
        """The next `length` bytes of the selected item, zeros where it ends."""
        blob, start = self._blobs.get(self.state.key, b""), self.state.offset
        self.state.offset = min(start + length, len(blob))
        return blob[start : start + length].ljust(length, b"\0")

    def _dma(self, address: int) -> None:
        """Carry out the access structure at `address`; a bad address is reported where possible."""
        try:
            control, length, target = DMA_ACCESS.unpack(self._memory.read(address, DMA_ACCESS.size))
            if control & DMA_SELECT:
                self._select(control >> 16)
            error = self._dma_transfer(control, length, target)
            self._memory.write(address, struct.pack(">I", error))
        except IndexError:
            return

    def _dma_transfer(self, control: int, length: int, target: int) -> int:
        if control & DMA_READ:
            return self._dma_read(length, target)
        if control & DMA_WRITE:
            return DMA_ERROR
        if control & DMA_SKIP:
            self.state.offset = min(self.state.offset + length, 1 << 32)
        return 0

    def _dma_read(self, length: int, target: int) -> int:
        while length > 0:
            chunk = self._take(min(length, DMA_CHUNK_BYTES))
            try:
                self._memory.write(target, chunk)
            except IndexError:
                return DMA_ERROR
            length -= len(chunk)
            target += len(chunk)
        return 0


def _swapped(value: int) -> int:
    return int.from_bytes((value & 0xFFFFFFFF).to_bytes(4, "little"), "big")

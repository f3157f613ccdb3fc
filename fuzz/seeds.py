"""A first corpus for the virtio targets: one sound request each, in split and packed rings.

`python -m fuzz.seeds` writes it under `fuzz/corpus/TARGET`, where cargo-fuzz looks. The input is a
byte of features and the queue's memory from address 16 on (see `fuzz_targets/ring`).
"""

from __future__ import annotations

import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
TABLE, AVAIL, MEMORY_FROM = 0x10, 0x90, 0x10
HEADER, ANSWER = 0x200, 0x1000
NEXT, WRITE, PACKED_AVAILABLE = 1, 2, 1 << 7
EVENT_INDEX_AND_INDIRECT, PACKED = 3, 4

SCSI_UNIT = bytes((1, 0, 0, 0, 0, 0, 0, 0))
SCSI_COMMANDS = (
    "00", "03 00 00 00 12", "12 00 00 00 60", "12 01 b0 00 60", "1a 00 3f 00 ff", "25",
    "28 00 00 00 00 01 00 00 01", "2a 08 00 00 00 01 00 00 01", "35", "5a 00 08 00 00 00 00 00 ff",
    "41 00 00 00 00 01 00 00 08", "93 09 00 00 00 00 00 00 00 01 00 00 00 08",
    "42 00 00 00 00 00 00 00 18", "43 00 00 00 00 00 00 00 ff", "46 00 00 00 00 00 00 00 ff",
    "4a 01 00 00 10 00 00 00 ff", "9e 10 00 00 00 00 00 00 00 00 00 00 00 20",
    "a0 00 00 00 00 00 00 00 01 00",
)  # fmt: skip

Request = tuple[bytes, int]
"""What the driver sends, and the bytes it takes back."""


def ring(request: Request, packed: bool) -> bytes:
    """The input of a ring with that one request."""
    sent, room = request
    pieces = [(HEADER, len(sent), 0)] if sent else []
    pieces += [(ANSWER, room, WRITE)] if room else []
    memory = bytearray(ANSWER + 0x1000)
    for number, (address, length, flags) in enumerate(pieces):
        more = NEXT if number + 1 < len(pieces) else 0
        last = (0, flags | more | PACKED_AVAILABLE) if packed else (flags | more, number + 1)
        struct.pack_into("<QIHH", memory, TABLE + 16 * number, address, length, *last)
    if not packed:
        struct.pack_into("<HHH", memory, AVAIL, 0, 1, 0)
    memory[HEADER : HEADER + len(sent)] = sent
    features = EVENT_INDEX_AND_INDIRECT | (PACKED if packed else 0)
    return bytes((features,)) + memory[MEMORY_FROM:]


def scsi(command: str) -> Request:
    """A command for a disk; what is sent with it lies in the same buffer."""
    cdb = bytes.fromhex(command).ljust(32, b"\0")
    header = SCSI_UNIT + bytes(11) + cdb
    sends = cdb[0] in (0x2A, 0x41, 0x42)
    unmap = bytes.fromhex("0016 0010 00000000 0000000000000001 00000008 00000000")
    return (header + unmap.ljust(512, b"\0"), 108) if sends else (header, 108 + 4096)


def blk(kind: int) -> Request:
    """A request at sector 1: reads, writes, flushes, an identity, ranges."""
    ranges = struct.pack("<QII", 1, 4, 0)
    data = {1: bytes(512), 11: ranges, 13: ranges}.get(kind, b"")
    return struct.pack("<IIQ", kind, 0, 1) + data, 513 if kind in (0, 8) else 1


def vsock(op: int) -> bytes:
    """A packet from the guest's port 1000."""
    return struct.pack("<QQIIIHHIII", 3, 2, 1000, 52, 4, 1, op, 0, 4096, 0) + b"data"


def requests() -> dict[str, list[tuple[bytes, Request]]]:
    """By target: what comes before the ring's input, and the request in it."""
    pages = struct.pack("<4I", 1, 2, 3, 0x100)
    return {
        "virtio_scsi": [
            *((b"\1", scsi(command)) for command in SCSI_COMMANDS),
            *((b"\0", (struct.pack("<II", 0, f) + SCSI_UNIT + bytes(8), 1)) for f in range(8)),
        ],
        "virtio_blk": [(b"", blk(kind)) for kind in (0, 1, 4, 8, 11, 13)],
        "virtio_console": [(b"\0", (b"", 64)), (b"\1", (b"text\n", 0))],
        "virtio_rng": [(b"", (b"", 64))],
        "virtio_balloon": [(bytes((which,)), (pages, 0)) for which in range(5)],
        "virtio_vsock": [(b"", (vsock(op), 100)) for op in range(1, 8)],
        "virtio_calls": [(b"", (b"request", 64))],
    }


def access(offset: int, size_log2: int, value: int, flags: int = 0) -> bytes:
    """A store to a register of an Ethernet controller; flag 0x80 moves frames after it."""
    return struct.pack("<HBBI", offset, size_log2, flags, value)


def ethernet() -> list[bytes]:
    """The start of a driver of each chip: rings of eight descriptors, then a frame each way."""
    e1000 = ((0x3800, 0x100), (0x3808, 128), (0x400, 2), (0x2800, 0x200), (0x2808, 128))
    e1000 += ((0x2818, 7), (0x100, 0x8022), (0xD0, 0xFF), (0x5000, 0x300), (0x3818, 2))
    rings = ((0xE0, 1, 0x63), (0x20, 2, 0x100), (0xE4, 2, 0x200), (0x44, 2, 0xF), (0x37, 0, 0xC))
    rings += ((0x3C, 1, 0xFFFF), (0xD9, 0, 0x40))
    buffers = ((0x30, 2, 0x2000), (0x44, 2, 0xF), (0x37, 0, 0xC), (0x20, 2, 0x1000), (0x10, 2, 100))
    programs = [[access(at, 2, value) for at, value in e1000]]
    programs += [[access(*store) for store in stores] for stores in (rings, buffers)]
    return [
        bytes((which, len(stores))) + b"".join(stores) + ethernet_memory(which)
        for which, stores in enumerate(programs)
    ]


def ethernet_memory(which: int) -> bytes:
    """Rings at 0x100 and 0x200, a frame at 0x1000."""
    memory = bytearray(0x3000)
    if which == 0:
        context = (0x21180E, 0x3222, 0x27000000 | 250, 54 << 8 | 100 << 16)
        struct.pack_into("<4I", memory, 0x100, *context)
        struct.pack_into("<4I", memory, 0x110, 0x1000, 0, 0x2D100000 | 304, 0x300)
    else:
        struct.pack_into("<4I", memory, 0x100, 0xF0010000 | 304, 0, 0x1000, 0)
    for number in range(8):
        words = (0x1800, 0, 0, 0) if which == 0 else (0x80000600, 0, 0x1800, 0)
        struct.pack_into("<4I", memory, 0x200 + 16 * number, *words)
    memory[0x100C:0x1018] = bytes.fromhex("0800 4500 0122 0000 0000 4006")
    memory[0x102E] = 0x50
    return bytes(memory)


def main() -> None:
    """Write all of it."""
    folder = CORPUS / "ethernet"
    folder.mkdir(parents=True, exist_ok=True)
    for number, program in enumerate(ethernet()):
        (folder / f"seed{number}").write_bytes(program)
    for target, cases in requests().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, (prefix, request) in enumerate(cases):
            for packed in (False, True):
                name = f"seed{number}-{'packed' if packed else 'split'}"
                (folder / name).write_bytes(prefix + ring(request, packed))


if __name__ == "__main__":
    main()

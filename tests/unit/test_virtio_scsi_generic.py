"""Commands passed on to a SCSI device of the host, by a driver on the software CPU's machine."""

from __future__ import annotations

import struct

from virtio_guest import DATA, WRITE, Guest

from guests.scsi_debug import debug_device, takes_scsi_debug
from ostler.devices.virtio.scsi import VirtioScsi

pytestmark = takes_scsi_debug

PATTERN = bytes(range(256)) * 2
REQUEST_QUEUE = 2
HEADER_BYTES, CDB_BYTES, RESPONSE_BYTES = 19, 32, 108
COMMAND, RESPONSE, BUFFER = DATA, DATA + 0x100, DATA + 0x1000


def command(guest: Guest, cdb: bytes, room: int = 0) -> tuple[int, int, int, bytes, bytes]:
    """Status, response, residual, sense and data of a command that a driver on `soft` sends."""
    lun = bytes([1, 0, 0, 0, 0, 0, 0, 0])
    header = lun + bytes(HEADER_BYTES - len(lun)) + cdb.ljust(CDB_BYTES, b"\0")
    guest.vm.memory.write(COMMAND, header)
    pieces = [(COMMAND, len(header), 0), (RESPONSE, RESPONSE_BYTES, WRITE)]
    guest.offer(*pieces, *([(BUFFER, room, WRITE)] if room else []))
    guest.await_interrupt()
    answer = guest.vm.memory.read(RESPONSE, RESPONSE_BYTES)
    sense_bytes, residual, _, status, response = struct.unpack_from("<IIHBB", answer)
    return (
        status,
        response,
        residual,
        answer[12 : 12 + sense_bytes],
        guest.vm.memory.read(BUFFER, room),
    )


def test_commands_are_answered_by_the_device() -> None:
    guest, device = Guest(), debug_device()
    scsi = VirtioScsi(guest.workers)
    scsi.pass_through(str(device.generic))
    transport = guest.plug(scsi)
    guest.drive(queue=REQUEST_QUEUE)
    try:
        status, response, residual, _, data = command(guest, bytes([0x12, 0, 0, 0, 255, 0]), 255)
        assert (status, response) == (0, 0)
        assert residual < 255 - 36
        assert data[8:36].decode().split() == device.identity.split()
        device.write(7, PATTERN)
        read = struct.pack(">BBIBHB", 0x28, 0, 7, 0, 1, 0)
        assert command(guest, read, 512) == (0, 0, 0, b"", PATTERN)
        beyond = struct.pack(">BBIBHB", 0x28, 0, device.sectors, 0, 1, 0)
        status, response, _, sense, _ = command(guest, beyond, 512)
        assert (status, response) == (2, 0)
        # Illegal request: logical block address out of range.
        assert (sense[2] & 0xF, sense[12]) == (5, 0x21)
        status, response, _, sense, _ = command(guest, bytes([0x7E]) + bytes(9))
        assert (status, sense[2] & 0xF, sense[12]) == (2, 5, 0x20)
    finally:
        transport.close()

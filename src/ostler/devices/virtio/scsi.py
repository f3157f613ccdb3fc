"""virtio-scsi (virtio 1.2, section 5.6): a SCSI host with disks, CD-ROMs, and devices of the host.

This file is the configuration space, the events, and which units there are; commands are executed
by the engine's workers.

Not modelled: protection information, and what `ostler-virtio/src/scsi` leaves out.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from ostler.devices.virtio.blk import Disk
from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.workers import Queue, Worker, Workers
from ostler.errors import ConfigError, HostError, StateError
from ostler.state import State

F_HOTPLUG = 1 << 1
F_CHANGE = 1 << 2

CONTROL_QUEUE, EVENT_QUEUE, _FIRST_REQUEST_QUEUE = range(3)
QUEUE_SIZE = 256
# Two descriptors of a request are its header and its response.
SEG_MAX = QUEUE_SIZE - 2
SECTOR_BYTES, MAX_SECTORS = 512, 0xFFFF
COMMANDS_PER_UNIT = 128
EVENT = struct.Struct("<I8sI")
MAX_TARGET, MAX_LUN = 63, 0x3FFF
# Linux and others look for units below this number only where they ask for a list of them.
FLAT_SPACE = 0x4000

SENSE_SIZE_OFFSET, CDB_SIZE_OFFSET = 20, 24
DEFAULT_SENSE_BYTES, MAX_SENSE_BYTES = 96, 252
DEFAULT_CDB_BYTES, MAX_CDB_BYTES = 32, 260

EVENT_TRANSPORT_RESET, EVENT_PARAMETER_CHANGE = 1, 3
RESET_RESCAN, RESET_REMOVED = 1, 2
# Additional sense code and qualifier: the capacity has changed.
CAPACITY_CHANGED = 0x2A | 0x09 << 8


@dataclass(slots=True)
class ScsiState(State):
    """The sizes in requests, which the driver can change."""

    sense_bytes: int = DEFAULT_SENSE_BYTES
    cdb_bytes: int = DEFAULT_CDB_BYTES

    def validate(self) -> None:
        """Raise `StateError` for sizes beyond the limits."""
        sense_fits = 0 <= self.sense_bytes <= MAX_SENSE_BYTES
        if not (sense_fits and 0 <= self.cdb_bytes <= MAX_CDB_BYTES):
            raise StateError("virtio-scsi: a size out of range")


class VirtioScsi(VirtioDevice[ScsiState]):
    """A host without units; `attach` adds them, also while the guest runs."""

    name = "virtio-scsi"
    State = ScsiState
    device_id = 8
    pci_class = 0x010000

    def __init__(self, workers: Workers, *, queues: int = 1) -> None:
        self.state = ScsiState()
        self.features = F_HOTPLUG | F_CHANGE
        self.queue_sizes = (QUEUE_SIZE,) * (2 + queues)
        self.units: set[tuple[int, int]] = set()
        self._max_sectors = MAX_SECTORS
        self._passes_through = False
        self._bus = workers.scsi()
        self._events = workers.feed()

    def attach(
        self,
        target: int,
        lun: int,
        disk: Disk,
        *,
        disc: bool = False,
        serial: str = "",
        discard: bool = True,
        cache: bool = True,
    ) -> None:
        """Put `disk` at `target` and `lun`, as a CD-ROM if `disc`; a running driver is told.

        `ConfigError` where there is a unit already, or cannot be one.
        """
        self._check_free(target, lun)
        self._bus.attach(
            target,
            lun,
            disk.disk,
            disc=disc,
            readonly=disk.readonly,
            serial=(serial or f"{target}-{lun}").encode(),
            discard=discard,
            writeback=cache,
            granularity_bytes=disk.block_bytes,
        )
        self.units.add((target, lun))
        self._tell(EVENT_TRANSPORT_RESET, target, lun, RESET_RESCAN)

    def pass_through(self, path: str) -> None:
        """Have the commands for unit 0 of target 0 passed on to the host's SCSI device at `path`.

        It should be the only unit, as others wait for its commands, which may take a minute.
        `HostError` when it cannot be had.
        """
        self._check_free(0, 0)
        try:
            self._max_sectors = self._bus.pass_through(0, 0, path) // SECTOR_BYTES
        except ValueError as error:
            raise HostError(f"{path}: {error}; lsscsi -g lists those of this host") from error
        except OSError as error:
            raise HostError(f"{path}: {_reason(error)}") from error
        self.units.add((0, 0))
        self._passes_through = True

    def close(self) -> None:
        """Let go of the device of the host: the machine's next start, or another, may have it."""
        super().close()
        if self._passes_through:
            self._passes_through = False
            self._bus.detach(0, 0)

    def _check_free(self, target: int, lun: int) -> None:
        if not (0 <= target <= MAX_TARGET and 0 <= lun <= MAX_LUN):
            raise ConfigError(
                f"SCSI unit {target}:{lun}: targets go from 0 to {MAX_TARGET}, units to {MAX_LUN}"
            )
        if (target, lun) in self.units:
            raise ConfigError(f"SCSI unit {target}:{lun} is there already; take another number")

    def detach(self, target: int, lun: int) -> None:
        """Take the unit at `target` and `lun` away; `ConfigError` where there is none."""
        if not self._bus.detach(target, lun):
            raise ConfigError(f"SCSI unit {target}:{lun}: there is none")
        self.units.discard((target, lun))
        self._tell(EVENT_TRANSPORT_RESET, target, lun, RESET_REMOVED)

    def eject(self, target: int, lun: int) -> None:
        """Take the disc out of the drive at `target` and `lun`, whether or not the guest locks it.

        `ConfigError` where there is no drive.
        """
        if not self._bus.eject(target, lun):
            raise ConfigError(f"SCSI unit {target}:{lun}: there is no CD-ROM drive")

    def insert(self, target: int, lun: int, disk: Disk) -> None:
        """Put `disk` into the drive at `target` and `lun`, in place of the disc that is in it.

        That is not used any more then. The driver finds out when it next looks. `ConfigError` where
        there is no drive.
        """
        if not self._bus.insert(target, lun, disk.disk):
            raise ConfigError(f"SCSI unit {target}:{lun}: there is no CD-ROM drive")

    def capacity_changed(self, target: int, lun: int) -> None:
        """Tell the driver that the unit has another size now."""
        self._tell(EVENT_PARAMETER_CHANGE, target, lun, CAPACITY_CHANGED)

    def _tell(self, event: int, target: int, lun: int, reason: int) -> None:
        address = struct.pack(">BBH4x", 1, target, lun | (FLAT_SPACE if lun > 255 else 0))
        self._events.put(EVENT.pack(event, address, reason))

    def config(self) -> bytes:
        """`struct virtio_scsi_config`."""
        return struct.pack(
            "<7I2HI",
            len(self.queue_sizes) - 2,
            SEG_MAX,
            self._max_sectors,
            COMMANDS_PER_UNIT,
            EVENT.size,
            self.state.sense_bytes,
            self.state.cdb_bytes,
            *(0, MAX_TARGET),
            MAX_LUN,
        )

    def write(self, offset: int, size: int, value: int) -> None:
        """The two writable fields; beyond the limits, they stay at them."""
        state = ScsiState(self.state.sense_bytes, self.state.cdb_bytes)
        if (offset, size) == (SENSE_SIZE_OFFSET, 4):
            state.sense_bytes = min(value, MAX_SENSE_BYTES)
        elif (offset, size) == (CDB_SIZE_OFFSET, 4):
            state.cdb_bytes = min(value, MAX_CDB_BYTES)
        self._take(state)

    def replace(self, state: ScsiState) -> None:
        """Take `state`; what a driver of another time was to be told is void."""
        self._take(state)
        self._events.clear()

    def _take(self, state: ScsiState) -> None:
        self.state = state
        self._bus.set_sizes(state.cdb_bytes, state.sense_bytes)

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve one queue."""
        if queue.index == CONTROL_QUEUE:
            return self._bus.control(queue)
        if queue.index == EVENT_QUEUE:
            return self._events.serve(queue)
        return self._bus.requests(queue)


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENXIO | errno.ENODEV:
            return "there is no such device; lsscsi -g lists those of this host"
        case errno.EACCES | errno.EPERM:
            return "it may not be opened for reading and writing; run as root, or have the rights"
        case errno.EBUSY:
            return "it is in use; unmount it, or end who has it open (fuser -v lists them)"
        case _:
            return f"it cannot be opened: {error.strerror}; lsscsi -g lists those of this host"

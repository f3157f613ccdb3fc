"""The SCSI host of a board, with the disks that are its units."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count

from ostler.config import MachineConfig
from ostler.config.disk import NEXT_TARGET
from ostler.devices.virtio.scsi import VirtioScsi
from ostler.errors import ConfigError
from ostler.machine.board import Host


def scsi_host(config: MachineConfig, host: Host) -> VirtioScsi | None:
    """The host with the units that `config` asks for; `None` where it asks for none.

    `ConfigError` where two want the same place.
    """
    numbers = [number for number, disk in enumerate(config.disks) if disk.on_scsi]
    if not numbers:
        return None
    scsi = VirtioScsi(host.workers, queues=1)
    targets = _free_targets(config)
    for number in numbers:
        disk = config.disks[number]
        target = next(targets) if disk.target == NEXT_TARGET else disk.target
        try:
            scsi.attach(
                target,
                disk.lun,
                host.images[number],
                disc=disk.media == "cdrom",
                serial=disk.serial,
                discard=disk.discard,
                cache=not disk.writes_through,
            )
        except ConfigError as error:
            raise ConfigError(f"--disk {disk.path}: {error}") from error
        host.images[number].live.tell_size = partial(scsi.capacity_changed, target, disk.lun)
    return scsi


def _free_targets(config: MachineConfig) -> Iterator[int]:
    taken = {disk.target for disk in config.disks}
    return (target for target in count() if target not in taken)

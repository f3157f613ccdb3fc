"""One of each virtio device, with what it has of the host."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from virtio_guest import Guest

from ostler.config import DiskConfig, MachineConfig
from ostler.devices.virtio.balloon import VirtioBalloon
from ostler.devices.virtio.blk import VirtioBlk
from ostler.devices.virtio.console import Port, VirtioConsole
from ostler.devices.virtio.device import VirtioDevice
from ostler.devices.virtio.input import VirtioKeyboard
from ostler.devices.virtio.mem import VirtioMem
from ostler.devices.virtio.net import VirtioNet
from ostler.devices.virtio.rng import VirtioRng
from ostler.devices.virtio.scsi import VirtioScsi
from ostler.devices.virtio.share import VirtioShare
from ostler.devices.virtio.vsock import VirtioVsock
from ostler.engine import NetLink
from ostler.machine.disks import GuestDisk, open_disks
from ostler.machine.hardware import HotSlots

RAM_BYTES = 1 << 20


class Lab:
    """A machine, and what its devices have of the host."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.guest, self.folder, self.stack = Guest(), folder, stack
        stack.callback(self.guest.vm.close)

    def disk(self) -> GuestDisk:
        path = self.folder / "disk.img"
        path.write_bytes(bytes(1 << 16))
        config = MachineConfig(kernel=path, disks=(DiskConfig(str(path)),))
        return self.stack.enter_context(open_disks(config))[0]

    def pipe(self) -> tuple[int, int]:
        """The read end of one pipe, and the write end of another."""
        ends = (*os.pipe(), *os.pipe())
        for fd in ends:
            self.stack.callback(os.close, fd)
        return ends[0], ends[3]

    def socket_fd(self, kind: socket.SocketKind) -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.stack.enter_context(ours)
        return self.stack.enter_context(theirs).fileno()

    def listener_fd(self) -> int:
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(self.folder / "vsock"))
        listener.listen()
        return listener.fileno()


def scsi(lab: Lab) -> VirtioScsi:
    device = VirtioScsi(lab.guest.workers)
    device.attach(0, 0, lab.disk())
    return device


def console(lab: Lab) -> VirtioConsole:
    ports = [Port("agent", *lab.pipe())]
    return VirtioConsole(lab.pipe(), lab.guest.workers, ports)


def net(lab: Lab) -> VirtioNet:
    link = NetLink.datagram(lab.socket_fd(socket.SOCK_DGRAM))
    return VirtioNet(link, lab.guest.workers, bytes.fromhex("525400123456"))


DEVICES: dict[str, Callable[[Lab], VirtioDevice[Any]]] = {
    "blk": lambda lab: VirtioBlk(lab.disk(), lab.guest.workers),
    "scsi": scsi,
    "console": console,
    "rng": lambda lab: VirtioRng(lab.guest.workers, 1 << 30),
    "balloon": lambda lab: VirtioBalloon(lab.guest.workers, RAM_BYTES),
    "mem": lambda lab: VirtioMem(
        lab.guest.workers, HotSlots(lab.guest.vm.memory), 1 << 32, 1 << 28
    ),
    "keyboard": lambda lab: VirtioKeyboard(lab.guest.workers),
    "vsock": lambda lab: VirtioVsock(lab.guest.workers, 3, lab.listener_fd(), f"{lab.folder}/v"),
    "share": lambda lab: VirtioShare(lab.guest.workers, lab.folder, "tag"),
    "net": net,
}

"""A device on a card of the host, beside its own address: `--net macvtap=eth0`.

The guest is a station of the card's network; machines on one card reach each other, but not the
host itself, as the kernel's macvtap has it. The device goes when the machine ends; one that was
left behind by a process that was killed is removed by the next that is made.

Frames for another address than the card's are not delivered to the guest.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from ostler.errors import ConfigError, HostError
from ostler.net import interface, rtnetlink
from ostler.net.backend import Backend, Events, Links, Monitor
from ostler.net.tap import LOOK_EVERY_S, set_up_queue

NAME = "o{:02x}t{}.{}"
"""A part of our PID namespace's number, the process, and a number of its own."""
CURE = "run as root or with CAP_NET_ADMIN, or use --net user"


class Macvtap(Backend):
    """A macvtap device on the card `lower`, with the guest's address and `queues` pairs of queues.

    `mtu` is the card's where none is given.
    """

    def __init__(
        self,
        links: Links,
        monitor: Monitor,
        events: Events,
        lower: str,
        mac: bytes,
        *,
        queues: int = 1,
        mtu: int = 0,
    ) -> None:
        what = f"--net macvtap={lower}"
        if not interface.exists(lower):
            raise ConfigError(f"{what}: the host has no interface {lower}; `ip link` lists them")
        most = interface.mtu(lower)
        if mtu > most:
            raise ConfigError(
                f"{what},mtu={mtu}: above the card's, which is {most}; leave mtu out, or"
                f" `ip link set {lower} mtu {mtu}` if its network takes that"
            )
        self.mtu = mtu or most
        self._fds: list[int] = []
        self.name = ""
        remove_left_behind()
        name = _free_name()
        try:
            rtnetlink.add_macvtap(name, lower, mac, queues=queues, mtu=mtu)
            self.name = name
            rtnetlink.set_alias(name, owner())
            self._open(queues)
            self.link = links.tap(self._fds)
            self._traffic_before = interface.traffic(name)
        except OSError as error:
            self.close()
            raise HostError(f"{what}: {_reason(error, lower)}") from error
        self._monitor, self._events = monitor, events
        monitor.after(LOOK_EVERY_S, self._look)

    def _open(self, queues: int) -> None:
        device = f"/dev/tap{socket.if_nametoindex(self.name)}"
        for _ in range(queues):
            self._fds.append(os.open(device, os.O_RDWR | os.O_CLOEXEC))
            set_up_queue(self._fds[-1], self.name, queues)

    def traffic(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """What the device counted since it was made."""
        sent, received = interface.traffic_since(self.name, self._traffic_before)
        return received, sent

    def _look(self) -> None:
        """Nothing tells those who have it open that the device has gone."""
        if not self._fds:
            return
        if interface.exists(self.name):
            self._monitor.after(LOOK_EVERY_S, self._look)
            return
        self.link.detach()
        self._events.report(f"the macvtap device {self.name} is gone; the guest has no carrier")
        self._events.changed()

    def close(self) -> None:
        """Remove the device."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        with suppress(OSError):
            if self.name:
                rtnetlink.delete_link(self.name)


def _free_name() -> str:
    taken = {name for _, name in socket.if_nameindex()}
    names = (NAME.format(_namespace(), os.getpid(), number) for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def _namespace() -> int:
    """Whose process numbers they are: a container may have its own, on the same network."""
    return os.stat("/proc/self/ns/pid").st_ino & 0xFF


def owner() -> str:
    """What is noted with a device of ours: a name has no room for all of the namespace's number."""
    return f"ostler {os.stat('/proc/self/ns/pid').st_ino}"


def _is_ours(name: str) -> bool:
    try:
        return Path(f"/sys/class/net/{name}/ifalias").read_text().strip() == owner()
    except OSError:
        return False


def _is_gone(pid: int) -> bool:
    """Whether there is no such process; /proc may hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def remove_left_behind() -> None:
    """Remove the devices of processes that were killed."""
    ours = re.compile(NAME.format(_namespace(), r"(\d+)", r"\d+"))
    for _, name in socket.if_nameindex():
        found = ours.fullmatch(name)
        if found and _is_gone(int(found[1])) and _is_ours(name):
            with suppress(OSError):
                rtnetlink.delete_link(name)


def _reason(error: OSError, lower: str) -> str:
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return f"making a macvtap device is not permitted; {CURE}"
        case errno.EOPNOTSUPP:
            return "the host's kernel has no macvtap; modprobe macvtap, or use --net tap"
        case errno.ENOENT | errno.ENXIO:
            return f"{error.filename} is not there; have devtmpfs mounted at /dev"
        case errno.EBUSY | errno.EINVAL:
            return (
                f"{lower} takes no macvtap ({error.strerror}): it may be a port of a bridge;"
                " name another card, or the bridge by --net tap"
            )
        case _:
            return f"{error.strerror}; {CURE}"

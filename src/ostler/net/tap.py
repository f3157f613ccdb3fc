"""A tap device, alone, on a bridge, or one that is there already: `--net tap[=NAME]`.

A device that we make lives as long as its descriptors: it is gone when this process is, however
that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct

from ostler.errors import ConfigError, HostError
from ostler.net import interface
from ostler.net.backend import Backend, Events, Links, Monitor

DEVICE = "/dev/net/tun"
TEMPLATE = "ostler%d"

TUNSETIFF = 0x4004_54CA
TUNSETVNETHDRSZ = 0x4004_54D8
TUNSETVNETLE = 0x4004_54DC
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x0002, 0x1000, 0x0100, 0x4000
HEADER_BYTES = 12
LOOK_EVERY_S = 1.0


class Tap(Backend):
    """A tap device with `queues` pairs of queues.

    `target` is a bridge, which it joins, a tap device, which it uses, or empty. `mtu` is the
    bridge's where none is given.
    """

    def __init__(
        self,
        links: Links,
        monitor: Monitor,
        events: Events,
        target: str = "",
        *,
        queues: int = 1,
        mtu: int = 0,
    ) -> None:
        what = f"--net tap={target}" if target else "--net tap"
        bridge = self._bridge(target, what)
        self._fds: list[int] = []
        try:
            self.name = self._open(TEMPLATE if bridge else target or TEMPLATE, queues, what)
            self.mtu = mtu or (interface.mtu(bridge) if bridge else 0)
            if bridge or not target:
                self._bring_up(bridge, what)
            self.link = links.tap(self._fds)
            self._traffic_before = interface.traffic(self.name)
        except BaseException:
            self.close()
            raise
        self._monitor, self._events = monitor, events
        monitor.after(LOOK_EVERY_S, self._look)

    @staticmethod
    def _bridge(target: str, what: str) -> str:
        """The bridge to join, if `target` is one."""
        if not target:
            return ""
        driver = interface.driver(target)
        if driver is None:
            raise ConfigError(
                f"{what}: the host has no bridge or tap device {target};"
                f" ip link add {target} type bridge makes one"
            )
        if driver not in ("bridge", "tun"):
            raise ConfigError(
                f"{what}: {target} is neither a bridge nor a tap device;"
                " put it on a bridge and name that"
            )
        return target if driver == "bridge" else ""

    def _open(self, name: str, queues: int, what: str) -> str:
        for _ in range(queues):
            try:
                self._fds.append(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
                name = set_up_queue(self._fds[-1], name, queues)
            except OSError as error:
                raise HostError(f"{what}: {_reason(error, queues)}") from error
        return name

    def _bring_up(self, bridge: str, what: str) -> None:
        try:
            if self.mtu:
                interface.set_mtu(self.name, self.mtu)
            if bridge:
                interface.join(bridge, self.name)
            interface.set_up(self.name)
        except OSError as error:
            raise HostError(
                f"{what}: {self.name}: {error.strerror}; run as root or with CAP_NET_ADMIN"
            ) from error

    def traffic(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """What the device counted since it was opened."""
        return interface.traffic_since(self.name, self._traffic_before)

    def _look(self) -> None:
        """The kernel wakes nobody who waits for nothing but the end of a tap device."""
        if not self._fds:
            return
        end = select.poll()
        end.register(self._fds[0], 0)
        if not end.poll(0):
            self._monitor.after(LOOK_EVERY_S, self._look)
            return
        # Where the kernel moves the frames, the link has not found out by itself.
        self.link.detach()
        self._events.report(f"the tap device {self.name} is gone; the guest has no carrier")
        self._events.changed()

    def close(self) -> None:
        """The device goes with its last descriptor."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def set_up_queue(fd: int, name: str, queues: int) -> str:
    """Have `fd` be one of the `queues` pairs of queues of the device `name`; what it is called."""
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if queues > 1 else 0)
    answer = fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER_BYTES))
    fcntl.ioctl(fd, TUNSETVNETLE, struct.pack("i", 1))
    return answer[:16].rstrip(b"\0").decode()


def _reason(error: OSError, queues: int) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return f"the host has no {DEVICE}; modprobe tun"
        case errno.EACCES | errno.EPERM:
            return (
                "making a tap device is not permitted; run as root, or have one made:"
                " ip tuntap add NAME mode tap user YOU"
            )
        case errno.EBUSY:
            return "the device is in use by another process; name another"
        case errno.EINVAL:
            kind = "with" if queues > 1 else "without"
            return f"the device was made for another number of queues; make it {kind} multi_queue"
        case _:
            return f"{error.strerror}; try without --net"

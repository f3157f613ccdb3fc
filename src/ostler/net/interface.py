"""Network interfaces of the host, by the ioctls of netdevice(7) and of bridges."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from pathlib import Path

IFNAMSIZ = 16
SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
SIOCGIFMTU, SIOCSIFMTU = 0x8921, 0x8922
SIOCETHTOOL = 0x8946
SIOCBRADDIF = 0x89A2
ETHTOOL_GDRVINFO = 3
DRVINFO_BYTES = 196
IFF_UP = 1


def _request(number: int, name: str, argument: bytes = b"") -> bytes:
    encoded = name.encode()
    if len(encoded) >= IFNAMSIZ:
        raise OSError(19, "no such device")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        answer = fcntl.ioctl(control, number, struct.pack("16s24s", encoded, argument))
    return answer[IFNAMSIZ:]


def driver(name: str) -> str | None:
    """What drives the interface: `bridge`, `tun`, `virtio_net`...; `None` when there is none."""
    if not exists(name):
        return None
    info = array.array("B", struct.pack(f"I{DRVINFO_BYTES - 4}x", ETHTOOL_GDRVINFO))
    address, _ = info.buffer_info()
    try:
        _request(SIOCETHTOOL, name, struct.pack("P", address))
    except OSError:
        return ""
    return info.tobytes()[4:36].rstrip(b"\0").decode(errors="replace")


def exists(name: str) -> bool:
    """Whether this network namespace has an interface of that name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def mtu(name: str) -> int:
    """Bytes of the largest packet."""
    (value,) = struct.unpack_from("i", _request(SIOCGIFMTU, name))
    return int(value)


def set_mtu(name: str, value: int) -> None:
    """Change the largest packet; `OSError` when not permitted."""
    _request(SIOCSIFMTU, name, struct.pack("i", value))


def set_up(name: str) -> None:
    """Switch the interface on; `OSError` when not permitted."""
    (flags,) = struct.unpack_from("h", _request(SIOCGIFFLAGS, name))
    _request(SIOCSIFFLAGS, name, struct.pack("h", flags | IFF_UP))


def join(bridge: str, name: str) -> None:
    """Make the interface a port of `bridge`; `OSError` when not permitted."""
    _request(SIOCBRADDIF, bridge, struct.pack("i", socket.if_nametoindex(name)))


Traffic = tuple[tuple[int, ...], tuple[int, ...]]
"""Frames, bytes, dropped and faulty frames that an interface sent, and the same it received."""


def traffic(name: str) -> Traffic:
    """What the interface has counted; zeros where there is none of that name."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        interface, _, columns = line.partition(":")
        if interface.strip() == name:
            counted = [int(column) for column in columns.split()]
            received, sent = counted[:4], counted[8:12]
            return _ordered(*sent), _ordered(*received)
    return (0,) * 4, (0,) * 4


def traffic_since(name: str, before: Traffic) -> Traffic:
    """What it has counted since then; zeros where it is gone."""
    now = traffic(name)
    sent, received = (
        tuple(max(0, count - first) for count, first in zip(*pair, strict=True))
        for pair in zip(now, before, strict=True)
    )
    return sent, received


def _ordered(count_bytes: int, frames: int, errors: int, dropped: int) -> tuple[int, ...]:
    return frames, count_bytes, dropped, errors

"""Links of the host that ioctls cannot make, by rtnetlink(7): macvtap devices come and go."""

from __future__ import annotations

import os
import socket
import struct

NETLINK_ROUTE = 0
NLMSG_ERROR = 2
RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK = 16, 17, 19
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x001, 0x004, 0x200, 0x400
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 5, 18, 20
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_MACVLAN_MODE = 1
MACVLAN_MODE_BRIDGE = 4
IFF_UP = 1

HEADER = struct.Struct("=IHHII")
"""`struct nlmsghdr`."""
INFO = struct.Struct("=BxHiII")
"""`struct ifinfomsg`."""


def _attribute(kind: int, value: bytes) -> bytes:
    header = struct.pack("=HH", 4 + len(value), kind)
    return header + value + bytes(-len(value) % 4)


def _request(kind: int, flags: int, body: bytes) -> None:
    """Ask the kernel, and wait until it has done it; `OSError` when it has not."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE
    ) as s:
        s.bind((0, 0))
        flags |= NLM_F_REQUEST | NLM_F_ACK
        s.send(HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body)
        answer = s.recv(1 << 16)
    _, answered, _, _, _ = HEADER.unpack_from(answer)
    (error,) = struct.unpack_from("=i", answer, HEADER.size)
    if answered == NLMSG_ERROR and error:
        raise OSError(-error, os.strerror(-error))


def add_macvtap(name: str, lower: str, mac: bytes, *, queues: int = 1, mtu: int = 0) -> None:
    """Make the macvtap device `name` on `lower`, switched on; others there reach it, too."""
    mode = _attribute(IFLA_MACVLAN_MODE, struct.pack("=I", MACVLAN_MODE_BRIDGE))
    info = _attribute(IFLA_INFO_KIND, b"macvtap") + _attribute(IFLA_INFO_DATA, mode)
    attributes = [
        _attribute(IFLA_IFNAME, name.encode() + b"\0"),
        _attribute(IFLA_LINK, struct.pack("=I", socket.if_nametoindex(lower))),
        _attribute(IFLA_ADDRESS, mac),
        _attribute(IFLA_NUM_TX_QUEUES, struct.pack("=I", queues)),
        _attribute(IFLA_NUM_RX_QUEUES, struct.pack("=I", queues)),
        _attribute(IFLA_LINKINFO, info),
    ]
    if mtu:
        attributes.append(_attribute(IFLA_MTU, struct.pack("=I", mtu)))
    body = INFO.pack(0, 0, 0, IFF_UP, IFF_UP) + b"".join(attributes)
    _request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_alias(name: str, alias: str) -> None:
    """Note `alias` with the device `name`, where `ip link` shows it."""
    index = socket.if_nametoindex(name)
    body = INFO.pack(0, 0, index, 0, 0) + _attribute(IFLA_IFALIAS, alias.encode())
    _request(RTM_SETLINK, 0, body)


def delete_link(name: str) -> None:
    """Remove the device `name`."""
    index = socket.if_nametoindex(name)
    _request(RTM_DELLINK, 0, INFO.pack(0, 0, index, 0, 0))

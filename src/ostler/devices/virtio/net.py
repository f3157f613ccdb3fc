"""virtio-net (virtio 1.2, section 5.1): a network card.

This file is the configuration space and the features; frames go between the rings and the host's
end of the cable in the engine, and so does what the driver asks for on the control queue.

Not modelled: receive side scaling by the driver's table (the host's kernel spreads flows over the
queues of a tap device), UFO, coalescing, standby for a passed-through card.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ostler.devices.virtio.device import F_RING_RESET, RING_FEATURES, VirtioDevice
from ostler.devices.virtio.workers import Cable, Queue, Worker, Workers
from ostler.errors import StateError
from ostler.state import State

F_CSUM = 1 << 0
F_GUEST_CSUM = 1 << 1
F_CTRL_GUEST_OFFLOADS = 1 << 2
F_MTU = 1 << 3
F_MAC = 1 << 5
F_GUEST_TSO4 = 1 << 7
F_GUEST_TSO6 = 1 << 8
F_GUEST_ECN = 1 << 9
F_HOST_TSO4 = 1 << 11
F_HOST_TSO6 = 1 << 12
F_HOST_ECN = 1 << 13
F_MRG_RXBUF = 1 << 15
F_STATUS = 1 << 16
F_CTRL_VQ = 1 << 17
F_CTRL_RX = 1 << 18
F_CTRL_VLAN = 1 << 19
F_CTRL_RX_EXTRA = 1 << 20
F_GUEST_ANNOUNCE = 1 << 21
F_MQ = 1 << 22
F_CTRL_MAC_ADDR = 1 << 23
F_GUEST_USO4 = 1 << 54
F_GUEST_USO6 = 1 << 55
F_HOST_USO = 1 << 56
F_HASH_REPORT = 1 << 57

FEATURES = (
    F_CSUM
    | F_GUEST_CSUM
    | F_CTRL_GUEST_OFFLOADS
    | F_MAC
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN
    | F_MRG_RXBUF
    | F_STATUS
    | F_CTRL_VQ
    | F_CTRL_RX
    | F_CTRL_VLAN
    | F_CTRL_RX_EXTRA
    | F_GUEST_ANNOUNCE
    | F_CTRL_MAC_ADDR
    | F_GUEST_USO4
    | F_GUEST_USO6
    | F_HOST_USO
)

# What each feature cannot do without (section 5.1.3.1): one of the features on the right.
NEEDS = {
    F_GUEST_TSO4: F_GUEST_CSUM,
    F_GUEST_TSO6: F_GUEST_CSUM,
    F_GUEST_ECN: F_GUEST_TSO4 | F_GUEST_TSO6,
    F_GUEST_USO4: F_GUEST_CSUM,
    F_GUEST_USO6: F_GUEST_CSUM,
    F_HOST_TSO4: F_CSUM,
    F_HOST_TSO6: F_CSUM,
    F_HOST_ECN: F_HOST_TSO4 | F_HOST_TSO6,
    F_HOST_USO: F_CSUM,
    F_CTRL_RX: F_CTRL_VQ,
    F_CTRL_VLAN: F_CTRL_VQ,
    F_CTRL_RX_EXTRA: F_CTRL_VQ,
    F_GUEST_ANNOUNCE: F_CTRL_VQ,
    F_MQ: F_CTRL_VQ,
    F_CTRL_MAC_ADDR: F_CTRL_VQ,
    F_HASH_REPORT: F_CTRL_VQ,
}

S_LINK_UP, S_ANNOUNCE = 1, 2
RECEIVE_SIZE, TRANSMIT_SIZE, CONTROL_SIZE = 1024, 256, 64
MAX_PAIRS = 64
# What the data path keeps of what the driver names.
MAX_ADDRESSES, VLAN_WORDS = 256, 64
MAC_BYTES = 6
HASH_KEY_BYTES = 40
# IPv4, TCP and UDP in it, and the same of IPv6, without extension headers.
HASH_TYPES = 0x3F


@dataclass(slots=True)
class NetState(State):
    """What the driver has set on the control queue."""

    mac: bytes = b""
    """Empty: the address the card was made with."""
    promiscuous: bool = True
    all_multicast: bool = False
    all_unicast: bool = False
    no_multicast: bool = False
    no_unicast: bool = False
    no_broadcast: bool = False
    unicast: list[bytes] = field(default_factory=list)
    multicast: list[bytes] = field(default_factory=list)
    vlan_filtering: bool = False
    vlans: list[int] = field(default_factory=list)
    """A bit for each VLAN in 64 words, or empty."""
    pairs: int = 1
    offloads: int = 0
    """The receive offloads that are on, as feature bits."""
    hash_types: int = 0
    hash_key: bytes = bytes(HASH_KEY_BYTES)
    announcing: bool = False

    def validate(self) -> None:
        tables = (self.unicast, self.multicast)
        sound = (
            len(self.mac) in (0, MAC_BYTES)
            and all(len(table) <= MAX_ADDRESSES for table in tables)
            and all(len(mac) == MAC_BYTES for table in tables for mac in table)
            and len(self.vlans) in (0, VLAN_WORDS)
            and all(0 <= word < 1 << 64 for word in self.vlans)
            and 1 <= self.pairs <= MAX_PAIRS
            and 0 <= self.offloads < 1 << 64
            and 0 <= self.hash_types <= HASH_TYPES
            and len(self.hash_key) == HASH_KEY_BYTES
        )
        if not sound:
            raise StateError(f"{type(self).__name__}: what is saved cannot be a network card's")


def nobody(text: str) -> None:
    """Who reports are for when nobody asked for them."""


class VirtioNet(VirtioDevice[NetState]):
    """A network card with the address `mac` on `cable`.

    `pairs` is how many pairs of queues it has, `mtu` what the driver is told to use at most (0: the
    driver decides). With `hash_report` each frame comes with its Toeplitz hash. `report` is called
    with a line when the kernel was to serve the queues and does not.
    """

    name = "virtio-net"
    State = NetState
    device_id = 1
    pci_class = 0x020000

    def __init__(
        self,
        cable: Cable,
        workers: Workers,
        mac: bytes,
        *,
        pairs: int = 1,
        mtu: int = 0,
        hash_report: bool = False,
        report: Callable[[str], object] = nobody,
    ) -> None:
        self.state = NetState()
        self.cable = cable
        self.mac = mac
        self.mtu = mtu
        self.pairs = pairs
        self.queue_sizes = (RECEIVE_SIZE, TRANSMIT_SIZE) * pairs + (CONTROL_SIZE,)
        self.features = FEATURES
        self.features |= F_MQ if pairs > 1 else 0
        self.features |= F_MTU if mtu else 0
        self.features |= F_HASH_REPORT if hash_report else 0
        self._connected = True
        self._report = report
        self._nic = workers.nic(cable, mac, pairs)
        by_kernel = self._nic.kernel_features
        self._by_kernel = by_kernel is not None
        if by_kernel is not None:
            # A queue's reset is the transport's: it stops the queue, and starts it again.
            self.ring_features = RING_FEATURES & (by_kernel | F_RING_RESET)

    def config(self) -> bytes:
        """`struct virtio_net_config`."""
        status = S_LINK_UP if self.link_up else 0
        status |= S_ANNOUNCE if self._nic.announcing else 0
        return struct.pack(
            "<6sHHHIBBHI",
            self._nic.mac,
            status,
            self.pairs,
            self.mtu,
            *(0xFFFF_FFFF, 0xFF),  # speed and duplex: unknown
            *(HASH_KEY_BYTES, 0, HASH_TYPES),
        )

    @property
    def link_up(self) -> bool:
        """Whether the guest sees a carrier."""
        return self._connected and self.cable.up

    def set_link(self, connected: bool) -> None:
        """Plug the cable in or pull it, as the guest sees it."""
        self._connected = connected
        self.announce_config()

    def link_changed(self) -> None:
        """The other end of the cable has come or gone: the driver looks at the status again."""
        self.announce_config()

    @property
    def served_by_kernel(self) -> bool:
        """Whether vhost-net moves the frames, so that only the host counts them."""
        return self._by_kernel

    def announce(self) -> None:
        """Ask the driver to tell the network where its address is now, after a migration say."""
        self._nic.announcing = True
        self.announce_config()

    def counters(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Frames, bytes, dropped and faulty frames received, and the same of those sent."""
        received, sent = self._nic.counters()
        return tuple(received), tuple(sent)

    def accept(self, features: int) -> bool:
        """Sound when every feature has what it needs; the driver's settings begin anew."""
        if any(features & feature and not features & needed for feature, needed in NEEDS.items()):
            return False
        self._nic.negotiate(features)
        return True

    def start(self, features: int, queue: Queue) -> Worker:
        """Serve one queue: receive and transmit by turns, the control queue last."""
        self._nic.resume(features)
        pairs = self.pairs if features & F_MQ else 1
        pair, direction = divmod(queue.index, 2)
        if queue.index == 2 * pairs:
            return self._nic.control(queue)
        if self._by_kernel:
            try:
                return self._nic.serve_in_kernel(queue, pair, bool(direction))
            except OSError as error:
                # What was negotiated is what our workers can do as well.
                self._by_kernel = False
                self._report(f"vhost-net: {error}; this process moves the frames instead")
        return self._nic.transmit(queue, pair) if direction else self._nic.receive(queue, pair)

    def save(self) -> dict[str, Any]:
        """The state, which the data path holds."""
        settings = self._nic.settings()
        self.state = NetState(**settings, announcing=self._nic.announcing)
        return super().save()

    def replace(self, state: NetState) -> None:
        """Take `state`; the data path follows."""
        self.state = state
        settings = {**asdict(state), "mac": state.mac or self.mac}
        self._nic.announcing = settings.pop("announcing")
        self._nic.restore(settings)

"""A network card of a guest: `KIND[=TARGET][,mac=ADDRESS][,queues=N][,mtu=BYTES][,pcap=FILE]...`.

And the ports of the host that lead to it: `[ADDRESS:]PORT:GUEST_PORT[/udp]`.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ostler.config.options import build, split_options
from ostler.config.several import several
from ostler.errors import ConfigError

# Each kind, and what its target is; `None`: it has none.
KINDS = {
    "user": None,
    "tap": "a bridge or a tap device of the host, br0 say",
    "macvtap": "a card of the host, eth0 say",
    "switch": "the name of a switch in this process",
    "socket": "the path of a unix socket, which the first of two machines makes",
    "dgram": "the path of the other end's unix datagram socket",
    "udp": "HOST:PORT of the other end",
}
# These are told where they are themselves, by local=.
DATAGRAMS = ("dgram", "udp")
# These are devices of the host's kernel.
TAPS = ("tap", "macvtap")
MODELS = ("virtio", "e1000", "rtl8139")
# What standard Ethernet carries; drivers of emulated cards are not told of more.
ETHERNET_MTU = 1500
MAX_QUEUES = 16
MIN_MTU, MAX_MTU = 68, 65_520
MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")


class NetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network card and where its cable leads.

    `local` is the own end of a datagram socket, a path or `HOST:PORT`;
    `model` is the card that the guest sees: `virtio`, or for guests without its drivers `e1000` or
    `rtl8139`; `queues` are pairs of queues; `mtu` is what the driver is told, 0 for what fits the
    network;
    `pcap` is a file that gets a copy of every frame;
    `hash` has the card report hashes of frames; with `host`, a guest on the user mode network
    reaches the host's own 127.0.0.1 as its gateway. `packed`: packed rings are offered. `vhost`:
    the host's kernel moves the frames of a tap device (vhost-net); left out, where it can.
    """

    kind: str = "user"
    target: str = ""
    local: str = ""
    mac: str = ""
    model: str = "virtio"
    queues: int = 1
    mtu: int = 0
    pcap: Path | None = None
    hash: bool = False
    host: bool = False
    packed: bool = True
    vhost: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"--net {self.kind!r}: there is: {', '.join(KINDS)}, none")
        self._check_target()
        if self.mac and not _is_usable(self.mac):
            raise ConfigError(
                f"{self}: {self.mac!r} is no address for one card; give 52:54:00:12:34:56 say"
            )
        if self.model not in MODELS:
            raise ConfigError(f"{self}: no model {self.model!r}; there is: {', '.join(MODELS)}")
        if self.model != "virtio" and (self.queues != 1 or self.hash):
            raise ConfigError(f"{self}: model={self.model} has one queue and no hash; use virtio")
        if not 1 <= self.queues <= MAX_QUEUES:
            raise ConfigError(f"{self}: queues={self.queues}: give 1 to {MAX_QUEUES}")
        if self.mtu and not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ConfigError(f"{self}: mtu={self.mtu}: give {MIN_MTU} to {MAX_MTU} bytes")
        if self.vhost and (why_not := self.not_by_vhost):
            raise ConfigError(f"{self}: vhost=on: {why_not}")

    def _check_target(self) -> None:
        wanted = KINDS[self.kind]
        if wanted is None and self.target:
            raise ConfigError(f"{self}: {self.kind} has no target; leave ={self.target} out")
        if wanted is not None and not self.target and self.kind != "tap":
            raise ConfigError(f"{self}: give {wanted}: --net {self.kind}=...")
        if bool(self.local) != (self.kind in DATAGRAMS):
            cure = "leave local= out" if self.local else "give its own end, too, by local="
            raise ConfigError(f"{self}: {cure}")

    def __str__(self) -> str:
        return f"--net {self.kind}{'=' if self.target else ''}{self.target}"

    @property
    def not_by_vhost(self) -> str:
        """Why the kernel cannot move the card's frames: cause and cure; empty where it can."""
        if self.kind not in TAPS:
            return "the kernel moves frames of tap devices; use --net tap or macvtap"
        if self.model != "virtio":
            return f"the kernel does not serve model={self.model}; use virtio"
        if self.pcap is not None:
            return "frames that the kernel moves are not seen here; leave pcap= or vhost=on out"
        return "the kernel reports no hashes; leave hash=on or vhost=on out" if self.hash else ""

    @property
    def mac_bytes(self) -> bytes:
        """The address asked for, or nothing."""
        return bytes.fromhex(re.sub("[:-]", "", self.mac))

    @classmethod
    def parse(cls, text: str) -> NetConfig:
        """From what follows `--net`, but `none`."""
        head, values = split_options(text, "--net")
        kind, _, target = head.partition("=")
        if kind == "none":
            raise ConfigError(f"--net {text}: none is no card; give --net none and no more")
        pcap = values.pop("pcap", "")
        file = {"pcap": Path(pcap)} if pcap else {}
        return build(cls, values, f"--net {head}", kind=kind, target=target, **file)


class PublishConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A port of the host that leads to one of the guest, on its user mode network."""

    port: int
    guest_port: int
    address: str = "127.0.0.1"
    protocol: str = "tcp"

    @classmethod
    def parse(cls, text: str) -> PublishConfig:
        """From what follows `--publish`."""
        ports, slash, protocol = text.partition("/")
        if slash and protocol not in ("tcp", "udp"):
            raise ConfigError(f"--publish {text!r}: no protocol {protocol!r}; there is: tcp, udp")
        import ipaddress

        address, _, guest = ports.rpartition(":")
        address, _, port = address.rpartition(":")
        address = address.removeprefix("[").removesuffix("]")
        try:
            ipaddress.ip_address(address or "127.0.0.1")
            numbers = int(port), int(guest)
        except ValueError:
            numbers = 0, 0
        if not all(0 < number < 1 << 16 for number in numbers):
            raise ConfigError(
                f"--publish {text!r}: give PORT:GUEST_PORT, 2222:22 say, or ADDRESS:PORT:GUEST_PORT"
            )
        return cls(*numbers, address or "127.0.0.1", protocol or "tcp")

    def __str__(self) -> str:
        return f"--publish {self.address}:{self.port}:{self.guest_port}/{self.protocol}"


def parse_nets(nets: object) -> tuple[NetConfig, ...]:
    """The cards that one or several texts or models stand for; `none` stands for none."""
    found = several(nets, _card_or_none, NetConfig, "net")
    if None in found and len(found) > 1:
        raise ConfigError("--net none: there are other --net options; leave one or the other out")
    return tuple(net for net in found if net is not None)


def _card_or_none(text: str) -> NetConfig | None:
    return None if text == "none" else NetConfig.parse(text)


def _is_usable(text: str) -> bool:
    """An address of one card: not a group's, not zero."""
    if not MAC.fullmatch(text):
        return False
    mac = bytes.fromhex(re.sub("[:-]", "", text))
    return not mac[0] & 1 and any(mac)

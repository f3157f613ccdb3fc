"""The network cards of a configuration: addresses claimed, back-ends started."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ostler.config import (
    DEFAULT_NAME,
    MachineConfig,
    NetConfig,
    PublishConfig,
    VirtioMemConfig,
)
from ostler.config.accelerator import KVM
from ostler.config.net import ETHERNET_MTU, TAPS
from ostler.errors import ConfigError, HostError
from ostler.net import passt
from ostler.net.backend import Backend, Link, Links
from ostler.net.mac import MacRegistry, random_mac
from ostler.net.monitor import MonitorThread

Report = Callable[[str], None]


def nobody(text: str) -> None:
    """Who reports are for when nobody asked for them."""


class Network:
    """A card's cable: the back-end at its end, and the address of the card.

    It stays when the guest is reset: `on_change` is set by whoever has the card that is there now.
    """

    link: Link
    backend: Backend | None = None

    def __init__(self, config: NetConfig, mac: bytes, report: Report) -> None:
        self.config, self.mac = config, mac
        self.problem = ""
        """The last thing that went wrong with it."""
        self.on_change: Callable[[], None] | None = None
        self._report = report

    def unplug(self) -> None:
        """End the back-end; the two refer to each other, and its descriptors have to go now."""
        backend, self.backend = self.backend, None
        if backend is not None:
            backend.close()

    @property
    def mtu(self) -> int:
        """What the guest's driver is told, 0 for nothing."""
        return self.config.mtu or (self.backend.mtu if self.backend else 0)

    def report(self, text: str) -> None:
        """Something the user should know; from any thread."""
        self.problem = text
        self._report(text)

    def changed(self) -> None:
        """The link has come up or gone down; from any thread."""
        on_change = self.on_change
        if on_change is not None:
            on_change()


def nets_of(config: MachineConfig) -> tuple[NetConfig, ...]:
    """The cards a machine gets: where nothing is said, user mode networking if there is passt."""
    if config.nets is not None:
        return config.nets
    return (NetConfig(),) if config.publish or passt.is_installed() else ()


def first_user(nets: Sequence[NetConfig]) -> int | None:
    """The number of the card that published ports lead to: two cards may be configured alike."""
    return next((number for number, net in enumerate(nets) if net.kind == "user"), None)


@contextmanager
def open_networks(
    config: MachineConfig, links: Links, report: Report = nobody, accelerator: str = ""
) -> Iterator[list[Network]]:
    """The networks in the order of the configuration, for a machine of `accelerator`.

    `ConfigError` or `HostError` when one that was asked for cannot be had.
    """
    nets = nets_of(config)
    if config.nets is None and not nets:
        report(f"the guest has no network: passt is not installed; {passt.CURE}")
    published = first_user(nets)
    with ExitStack() as opened:
        networks = [_claim(config, number, net, report, opened) for number, net in enumerate(nets)]
        monitor = MonitorThread()
        for number, network in enumerate(list(networks)):
            publish = config.publish if number == published else ()
            try:
                network.backend = _backend(network, publish, links, monitor)
            except HostError as error:
                if config.nets is not None or config.publish:
                    raise
                # Nobody asked for it.
                report(f"the guest has no network: {error}")
                networks.remove(network)
                continue
            opened.callback(network.unplug)
            network.link = _captured(network.config, network.backend.link)
            if network.config.kind in TAPS:
                _move_to_kernel(network, why_not_vhost(config, network.config, accelerator))
        # The first to end: what is closed after it is no news.
        opened.callback(monitor.close)
        yield networks


def why_not_vhost(config: MachineConfig, net: NetConfig, accelerator: str) -> str:
    """Why the kernel cannot move the card's frames: cause and cure; empty where it may be tried."""
    if why_not := net.not_by_vhost:
        return why_not
    if accelerator != KVM:
        return "the software CPU does not see what the kernel writes to memory; use --accel kvm"
    if any(isinstance(device, VirtioMemConfig) for device in config.devices):
        return "the kernel is told once where memory is, and virtio-mem changes that; leave one out"
    return ""


def _move_to_kernel(network: Network, why_not: str) -> None:
    """Have the kernel move the frames of a tap device, where it can and is not told not to."""
    wanted = network.config.vhost
    if wanted is False or (why_not and wanted is None):
        return
    if why_not:
        raise ConfigError(f"{network.config}: vhost=on: {why_not}")
    try:
        network.link = network.link.served_by_kernel()
    except OSError as error:
        reason = f"{network.config}: vhost-net: {_no_vhost(error)}"
        if wanted:
            raise HostError(reason) from error
        network.report(f"{reason}; this process moves the frames instead")


def _no_vhost(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return "/dev/vhost-net is not there (modprobe vhost_net)"
        case errno.EACCES | errno.EPERM:
            return "/dev/vhost-net may not be opened (setfacl -m u:USER:rw /dev/vhost-net)"
        case _:
            return f"the host refuses: {error.strerror or error}"


def _claim(
    config: MachineConfig, number: int, net: NetConfig, report: Report, opened: ExitStack
) -> Network:
    registry, keep = MacRegistry(), config.name != DEFAULT_NAME
    try:
        mac = registry.claim(config.name, number, wanted=net.mac_bytes, keep=keep)
    except HostError as error:
        # A guest can do without: its address is as good as unique.
        network = Network(net, net.mac_bytes or random_mac(), report)
        network.report(str(error))
        return network
    opened.callback(_release, registry, mac, report)
    return Network(net, mac, report)


def _release(registry: MacRegistry, mac: bytes, report: Report) -> None:
    try:
        registry.release(mac)
    except HostError as error:
        report(str(error))


def _backend(
    network: Network, publish: Sequence[PublishConfig], links: Links, monitor: MonitorThread
) -> Backend:
    net = network.config
    match net.kind:
        case "user":
            usual = passt.MTU if net.model == "virtio" else ETHERNET_MTU
            settings = passt.Settings(network.mac, net.mtu or usual, publish, net.host)
            return passt.Passt(links, monitor, network, settings)
        case "tap":
            from ostler.net.tap import Tap

            return Tap(links, monitor, network, net.target, queues=net.queues, mtu=net.mtu)
        case "macvtap":
            from ostler.net.macvtap import Macvtap

            return Macvtap(
                links, monitor, network, net.target, network.mac, queues=net.queues, mtu=net.mtu
            )
        case "switch":
            from ostler.net.switch import SwitchPort

            return SwitchPort(links, net.target, mtu=net.mtu)
    return _socket(network, links, monitor)


def _socket(network: Network, links: Links, monitor: MonitorThread) -> Backend:
    from ostler.net.sockets import DatagramSocket, StreamSocket, UdpSocket

    net = network.config
    match net.kind:
        case "socket":
            return StreamSocket(links, monitor, network, net.target, mtu=net.mtu)
        case "dgram":
            return DatagramSocket(links, monitor, net.local, net.target, mtu=net.mtu)
        case "udp":
            return UdpSocket(links, net.local, net.target, mtu=net.mtu)
    raise ConfigError(f"{net}: there is no such network")


def _captured(net: NetConfig, link: Link) -> Link:
    if net.pcap is None:
        return link
    try:
        fd = os.open(net.pcap, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{net}: pcap={net.pcap}: {error.strerror}; give a file that can be written"
        ) from error
    try:
        return link.captured(fd)
    finally:
        os.close(fd)

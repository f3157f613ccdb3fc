"""The `virt` board: small and fast, what a kernel that is booted directly needs and no more.

One serial port, a real-time clock, a keyboard controller for its reset line, ACPI power management,
fw_cfg, pvpanic, a reset register, and PCI with virtio devices. No BIOS, no VGA, no legacy disks.
"""

from __future__ import annotations

from typing import Any

from ostler.config import (
    DebugExitConfig,
    DeviceConfig,
    MachineConfig,
    ScsiGenericConfig,
    VirtioBalloonConfig,
    VirtioConsoleConfig,
    VirtioKeyboardConfig,
    VirtioMemConfig,
    VirtioRngConfig,
    VirtioShareConfig,
    VirtioTabletConfig,
    VirtioVsockConfig,
    format_size,
)
from ostler.config.size import parse_size
from ostler.devices import acpi_pm, debug_exit, fw_cfg, pvpanic, reset_control, rtc, serial
from ostler.devices.i8042 import COMMAND_STATUS, DATA, I8042
from ostler.devices.nic.card import EmulatedNic
from ostler.devices.nic.e1000 import E1000
from ostler.devices.nic.rtl8139 import Rtl8139
from ostler.devices.pci.device import PciDevice
from ostler.devices.pci.host import PciHost, intx_gsi
from ostler.devices.virtio.balloon import VirtioBalloon
from ostler.devices.virtio.blk import VirtioBlk
from ostler.devices.virtio.console import VirtioConsole
from ostler.devices.virtio.device import F_RING_PACKED, VirtioDevice
from ostler.devices.virtio.input import VirtioKeyboard, VirtioTablet
from ostler.devices.virtio.net import VirtioNet
from ostler.devices.virtio.rng import VirtioRng
from ostler.devices.virtio.scsi import VirtioScsi
from ostler.devices.virtio.transport import VirtioPci
from ostler.devices.virtio.vsock import VirtioVsock
from ostler.devices.vmgenid import Vmgenid
from ostler.errors import ConfigError, HostError
from ostler.machine import memory_map as at
from ostler.machine.board import Board, Host, Shifted
from ostler.machine.hardware import Hardware, HotSlots
from ostler.machine.scsi import scsi_host

NetDevice = VirtioNet | EmulatedNic
EMULATED_NICS: dict[str, type[EmulatedNic]] = {"e1000": E1000, "rtl8139": Rtl8139}


class VirtBoard(Board):
    """The board with the devices its owner talks to."""

    def __init__(self, config: MachineConfig, hardware: Hardware, host: Host) -> None:
        super().__init__(hardware)
        self.config, self.host = config, host
        self._add_memory()
        hardware.create_irqchip()
        self.serial = self._add_serial()
        self.pm = self._add_power_management()
        self._add_rtc()
        self._add_keyboard_controller()
        self._add_fw_cfg()
        self._add_pvpanic()
        self.vmgenid = self._add_vmgenid()
        self.pci = self._add_pci()
        for number, disk in enumerate(config.disks):
            if not disk.on_scsi:
                self._add_disk(number)
        scsi = scsi_host(config, host)
        if scsi is not None:
            # Its driver has to manage with what all units can do.
            packed = all(disk.packed for disk in config.disks if disk.on_scsi)
            self.plug_virtio("scsi", scsi, packed=packed)
        for device in config.devices:
            self._add_requested(device)
        if host.ports and "console" not in self.devices:
            self.plug_virtio("console", VirtioConsole(None, host.workers, host.ports))
        self.nets = [self._add_net(number) for number in range(len(host.cables))]

    def close(self) -> None:
        # Behind the bridge the ranges move with the BARs; a reset would map them again.
        for device in self.pci.slots.values():
            if isinstance(device, VirtioPci | EmulatedNic):
                device.close()
        super().close()

    def _add_memory(self) -> None:
        size = self.config.memory.size_bytes
        try:
            for region in at.ram_regions(size):
                self.add_ram(region.gpa, region.size)
        except HostError as error:
            raise HostError(
                f"--memory {format_size(size)}: {error}; give the guest less"
            ) from error

    def _add_serial(self) -> serial.Serial16550:
        line = self.irq(at.SERIAL_IRQ, "serial")
        clock, host = self.hardware.clock, self.host
        port = serial.Serial16550(line, clock, host.timers, host.serial)
        self.add("serial", port)
        self.map_ports(at.SERIAL_PORT, serial.PORTS, port, "serial")
        return port

    def _add_power_management(self) -> acpi_pm.AcpiPm:
        line = self.irq(at.SCI_IRQ, "acpi-pm")
        clock, host = self.hardware.clock, self.host
        device = acpi_pm.AcpiPm(line, clock, host.timers, host.requests)
        self.add("acpi-pm", device)
        self.map_ports(at.ACPI_PM_PORT, acpi_pm.PORTS, device, "acpi-pm")
        return device

    def _add_rtc(self) -> None:
        low, high = _split(self.config)
        line = self.irq(at.RTC_IRQ, "rtc")
        clock, host = self.hardware.clock, self.host
        cmos = rtc.memory_bytes_in_cmos(low, high)
        device = rtc.Rtc(line, clock, host.timers, host.wall, cmos)
        self.add("rtc", device)
        self.map_ports(at.RTC_PORT, rtc.PORTS, device, "rtc")
        # The index register: nothing comes of it before the data register is used.
        self.hardware.coalesce("pio", at.RTC_PORT, 1)

    def _add_keyboard_controller(self) -> None:
        keyboard, aux = self.irq(at.KEYBOARD_IRQ, "i8042"), self.irq(at.AUX_IRQ, "i8042")
        device = I8042(keyboard, aux, self.host.requests)
        self.add("i8042", device)
        self.map_ports(at.KEYBOARD_DATA_PORT, 1, Shifted(device, DATA), "i8042")
        self.map_ports(at.KEYBOARD_COMMAND_PORT, 1, Shifted(device, COMMAND_STATUS), "i8042")

    def _add_fw_cfg(self) -> None:
        config = self.config
        blobs = fw_cfg.items(config.memory.size_bytes, config.cpu.count, {})
        device = fw_cfg.FwCfg(self.hardware.memory, blobs)
        self.add("fw-cfg", device)
        self.map_ports(at.FW_CFG_PORT, fw_cfg.PORTS, device, "fw-cfg")
        # The selector, as the RTC's.
        self.hardware.coalesce("pio", at.FW_CFG_PORT, 2)

    def _add_pvpanic(self) -> None:
        device = pvpanic.Pvpanic(self.host.requests)
        self.add("pvpanic", device)
        self.map_ports(at.PVPANIC_PORT, pvpanic.PORTS, device, "pvpanic")

    def _add_vmgenid(self) -> Vmgenid:
        line = self.irq(at.VMGENID_IRQ, "vmgenid")
        device = Vmgenid(self.hardware.memory, at.VMGENID_GPA, line)
        self.add("vmgenid", device)
        return device

    def _add_pci(self) -> PciHost:
        reset = reset_control.ResetControl(self.host.requests)
        self.add("reset-control", reset)
        windows = at.pci_windows(self.config.memory.size_bytes, self.config.hot_bytes)
        host = PciHost(
            self.bus,
            lambda gsi: self.irq(gsi, "pci"),
            self.hardware.msi_route,
            windows,
            reset,
        )
        self.add("pci-host", host)
        return host

    def _add_disk(self, number: int) -> None:
        config, image = self.config.disks[number], self.host.images[number]
        device = VirtioBlk(
            image,
            self.host.workers,
            serial=config.serial,
            discard=config.discard,
            queues=config.queues,
            cache=not config.writes_through,
            limits=(parse_size(config.bps, "bps"), config.iops),
        )
        self.plug_virtio(f"disk{number}", device, packed=config.packed)
        image.live.tell_size = device.announce_config

    def _add_net(self, number: int) -> NetDevice:
        cable = self.host.cables[number]
        config = cable.config
        emulated = EMULATED_NICS.get(config.model)
        if emulated is not None:
            nic = emulated(cable.link, self.host.workers, cable.mac)
            self.plug(f"net{number}", nic)
            return nic
        device = VirtioNet(
            cable.link,
            self.host.workers,
            cable.mac,
            pairs=config.queues,
            mtu=cable.mtu,
            hash_report=config.hash,
            report=cable.report,
        )
        self.plug_virtio(f"net{number}", device, packed=config.packed)
        return device

    def _add_requested(self, device: DeviceConfig) -> None:
        match device:
            case DebugExitConfig():
                self._add_debug_exit(device.iobase)
            case VirtioRngConfig():
                self.plug_virtio(
                    "rng", VirtioRng(self.host.workers, device.rate), packed=device.packed
                )
            case VirtioConsoleConfig():
                self._add_console(device)
            case VirtioBalloonConfig():
                self._add_balloon(device)
            case VirtioKeyboardConfig():
                keyboard = VirtioKeyboard(self.host.workers)
                self.plug_virtio("keyboard", keyboard, packed=device.packed)
            case VirtioTabletConfig():
                tablet = VirtioTablet(self.host.workers)
                self.plug_virtio("tablet", tablet, packed=device.packed)
            case VirtioMemConfig():
                self._add_hot_memory(device)
            case VirtioShareConfig():
                self._add_share(device)
            case VirtioVsockConfig():
                self._add_vsock(device)
            case ScsiGenericConfig():
                self._add_generic(device)

    def _add_console(self, config: VirtioConsoleConfig) -> None:
        if self.host.console_fds is None:
            raise ConfigError(
                "--device virtio-console: this host side has no console; leave it out"
            )
        console = VirtioConsole(self.host.console_fds, self.host.workers, self.host.ports)
        self.plug_virtio("console", console, packed=config.packed)

    def _add_balloon(self, config: VirtioBalloonConfig) -> None:
        balloon = VirtioBalloon(
            self.host.workers,
            self.config.memory.size_bytes,
            deflate_on_oom=config.deflate_on_oom,
            reporting=config.reporting,
        )
        self.plug_virtio("balloon", balloon, packed=config.packed)

    def _add_hot_memory(self, config: VirtioMemConfig) -> None:
        from ostler.devices.virtio.mem import VirtioMem

        region = at.hot_region(self.config.memory.size_bytes, config.size_bytes)
        memory = HotSlots(self.hardware.memory)
        device = VirtioMem(self.host.workers, memory, region.gpa, region.size)
        self.plug_virtio("mem", device, packed=config.packed)

    def _add_share(self, config: VirtioShareConfig) -> None:
        # Imported where it is wanted: it brings ctypes along.
        from ostler.devices.virtio.share import VirtioShare

        name = f"share:{config.mount_tag}"
        if name in self.devices:
            raise ConfigError(
                f"--share {config.path}:{config.mount_tag}: the tag is taken; pick one"
            )
        workers, tag, readonly = self.host.workers, config.mount_tag, config.readonly
        device = VirtioShare(workers, config.path, tag, readonly=readonly)
        self.plug_virtio(name, device, packed=config.packed)

    def _add_vsock(self, config: VirtioVsockConfig) -> None:
        if self.host.vsock is None:
            raise ConfigError("--vsock: this host side has no socket for it; leave it out")
        device = VirtioVsock(self.host.workers, config.cid, *self.host.vsock)
        self.plug_virtio("vsock", device, packed=config.packed)

    def _add_generic(self, config: ScsiGenericConfig) -> None:
        # A host of its own: nobody else's commands wait for those of real hardware.
        name = f"scsi-generic:{config.path}"
        if name in self.devices:
            raise ConfigError(f"--device scsi-generic,path={config.path}: it is there twice")
        device = VirtioScsi(self.host.workers)
        try:
            device.pass_through(config.path)
        except HostError as error:
            raise HostError(f"--device scsi-generic: {error}") from error
        self.plug_virtio(name, device, packed=config.packed)

    def _add_debug_exit(self, iobase: int) -> None:
        device = debug_exit.DebugExit(self.host.requests)
        try:
            self.map_ports(iobase, debug_exit.PORTS, device, "debug-exit")
        except ValueError as error:
            raise ConfigError(
                f"--device debug-exit,iobase={iobase:#x}: {error}; try 0xf4"
            ) from error
        self.add("debug-exit", device)

    def plug(self, name: str, device: PciDevice[Any]) -> None:
        """Put a PCI device into the next free slot, under the name its state is saved by."""
        if name in self.devices:
            raise ConfigError(f"--device {name}: a machine has one; give it once")
        device.label = name
        slot = self.pci.attach(device)
        self.lines.users.setdefault(intx_gsi(slot), []).append(name)
        self.add(name, device)

    def plug_virtio(self, name: str, device: VirtioDevice[Any], *, packed: bool = True) -> None:
        """Put a virtio device behind PCI; without `packed`, its driver is offered split rings."""
        if not packed:
            device.ring_features &= ~F_RING_PACKED
        self.plug(name, VirtioPci(device))


def _split(config: MachineConfig) -> tuple[int, int]:
    low, *high = at.ram_regions(config.memory.size_bytes)
    return low.size, sum(region.size for region in high)

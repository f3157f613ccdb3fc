"""A whole machine as a user asks for it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from ostler.config.accelerator import KERNEL_IOAPIC_CPUS, AcceleratorChoice
from ostler.config.console import PortConfig, check_ports
from ostler.config.cpu import CpuConfig
from ostler.config.devices import DeviceConfig, VirtioMemConfig
from ostler.config.disk import DiskConfig
from ostler.config.memory import MemoryConfig
from ostler.config.net import NetConfig, PublishConfig
from ostler.config.serial import SerialConfig
from ostler.errors import ConfigError

# What a machine is called that nobody named.
DEFAULT_NAME = "guest"
# Files are called by it.
NAME = re.compile(r"\w[\w.+@-]{0,63}")


class MachineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about a machine but where it runs. The board is `virt`, the only one there is."""

    kernel: Path
    initrd: Path | None = None
    append: str = ""
    name: str = DEFAULT_NAME
    cpu: CpuConfig = CpuConfig()
    memory: MemoryConfig = MemoryConfig()
    disks: tuple[DiskConfig, ...] = ()
    serial: SerialConfig = SerialConfig()
    devices: tuple[DeviceConfig, ...] = ()
    consoles: tuple[PortConfig, ...] = ()
    nets: tuple[NetConfig, ...] | None = None
    """`None`: user mode networking where the host has it."""
    publish: tuple[PublishConfig, ...] = ()
    accelerator: AcceleratorChoice = AcceleratorChoice()
    reboot: bool = True
    profile: bool = False
    """Look at what the CPUs do, and where, a thousand times a second."""
    symbols: Path | None = None
    """What names the addresses of the profile."""

    @property
    def hot_bytes(self) -> int:
        """Room for memory that comes while the guest runs."""
        rooms = [device for device in self.devices if isinstance(device, VirtioMemConfig)]
        return sum(room.size_bytes for room in rooms)

    def __post_init__(self) -> None:
        if "\0" in self.append:
            raise ConfigError("--append: a kernel command line holds no NUL; remove it")
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name {self.name!r}: a name begins with a letter or digit, and has up to 63 more"
                " of them and of ._+@-; web1 say"
            )
        check_ports(self.consoles)
        if self.symbols is not None and not self.profile:
            raise ConfigError("--symbols: only a profile shows symbols; add --profile")
        cpus, irqchip = self.cpu.count, self.accelerator.kvm.split_irqchip
        if irqchip is False and cpus > KERNEL_IOAPIC_CPUS:
            raise ConfigError(
                f"--cpus {cpus}: kernel-irqchip=on reaches {KERNEL_IOAPIC_CPUS} CPUs; leave it out"
            )
        users = [net for net in self.nets or () if net.kind == "user"]
        if self.publish and self.nets is not None and not users:
            raise ConfigError(f"{self.publish[0]}: needs the user mode network; add --net user")
        writable = [disk.path for disk in self.disks if disk.writes]
        for path in {disk.path for disk in self.disks}:
            if path in writable and sum(disk.path == path for disk in self.disks) > 1:
                raise ConfigError(f"--disk {path} is given twice; make both readonly=on or copy it")

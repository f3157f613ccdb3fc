"""A whole machine as a user asks for it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from ostler.config.accelerator import AcceleratorChoice
from ostler.config.cpu import CpuConfig
from ostler.config.devices import DeviceConfig
from ostler.config.disk import DiskConfig
from ostler.config.memory import MemoryConfig
from ostler.config.serial import SerialConfig
from ostler.errors import ConfigError


class MachineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about a machine but where it runs. The board is `virt`, the only one there is."""

    kernel: Path
    initrd: Path | None = None
    append: str = ""
    name: str = "guest"
    cpu: CpuConfig = CpuConfig()
    memory: MemoryConfig = MemoryConfig()
    disks: tuple[DiskConfig, ...] = ()
    serial: SerialConfig = SerialConfig()
    devices: tuple[DeviceConfig, ...] = ()
    accelerator: AcceleratorChoice = AcceleratorChoice()
    reboot: bool = True

    def __post_init__(self) -> None:
        if "\0" in self.append:
            raise ConfigError("--append: a kernel command line holds no NUL; remove it")
        writable = [disk.path for disk in self.disks if not (disk.readonly or disk.overlay)]
        for path in {disk.path for disk in self.disks}:
            if path in writable and sum(disk.path == path for disk in self.disks) > 1:
                raise ConfigError(f"--disk {path} is given twice; make both readonly=on or copy it")

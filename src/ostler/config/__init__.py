"""What a user asks for: one model for each section, and the texts options are written in.

Whatever is wrong is a `ConfigError`: one line with the option, the cause and the cure.
"""

from ostler.config.accelerator import AcceleratorChoice
from ostler.config.console import PortConfig, PortKind
from ostler.config.cpu import CpuConfig, SoftJit
from ostler.config.devices import (
    DebugExitConfig,
    DeviceConfig,
    VirtioBalloonConfig,
    VirtioConsoleConfig,
    VirtioKeyboardConfig,
    VirtioRngConfig,
    VirtioShareConfig,
    VirtioTabletConfig,
    VirtioVsockConfig,
    parse_device,
)
from ostler.config.disk import DiskConfig
from ostler.config.machine import DEFAULT_NAME, MachineConfig
from ostler.config.memory import MemoryConfig
from ostler.config.net import NetConfig, PublishConfig, parse_nets
from ostler.config.serial import SerialConfig, SerialKind
from ostler.config.several import several
from ostler.config.size import format_size, parse_size

__all__ = [
    "DEFAULT_NAME",
    "AcceleratorChoice",
    "CpuConfig",
    "DebugExitConfig",
    "DeviceConfig",
    "DiskConfig",
    "MachineConfig",
    "MemoryConfig",
    "NetConfig",
    "PortConfig",
    "PortKind",
    "PublishConfig",
    "SerialConfig",
    "SerialKind",
    "SoftJit",
    "VirtioBalloonConfig",
    "VirtioConsoleConfig",
    "VirtioKeyboardConfig",
    "VirtioRngConfig",
    "VirtioShareConfig",
    "VirtioTabletConfig",
    "VirtioVsockConfig",
    "format_size",
    "parse_device",
    "parse_nets",
    "parse_size",
    "several",
]

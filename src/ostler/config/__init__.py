"""What a user asks for: one model for each section, and the texts options are written in.

Whatever is wrong is a `ConfigError`: one line with the option, the cause and the cure.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ostler.config.accelerator import AcceleratorChoice
    from ostler.config.console import PortConfig, PortKind
    from ostler.config.cpu import CpuConfig, CpuModelConfig, SoftJit
    from ostler.config.devices import (
        DebugExitConfig,
        DeviceConfig,
        ScsiGenericConfig,
        VirtioBalloonConfig,
        VirtioConsoleConfig,
        VirtioKeyboardConfig,
        VirtioMemConfig,
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
    from ostler.config.size import format_size, parse_size

__all__ = [
    "DEFAULT_NAME",
    "AcceleratorChoice",
    "CpuConfig",
    "CpuModelConfig",
    "DebugExitConfig",
    "DeviceConfig",
    "DiskConfig",
    "MachineConfig",
    "MemoryConfig",
    "NetConfig",
    "PortConfig",
    "PortKind",
    "PublishConfig",
    "ScsiGenericConfig",
    "SerialConfig",
    "SerialKind",
    "SoftJit",
    "VirtioBalloonConfig",
    "VirtioConsoleConfig",
    "VirtioKeyboardConfig",
    "VirtioMemConfig",
    "VirtioRngConfig",
    "VirtioShareConfig",
    "VirtioTabletConfig",
    "VirtioVsockConfig",
    "format_size",
    "parse_device",
    "parse_nets",
    "parse_size",
]

# Looked up when first used: a size is parsed without the models of a machine.
_HOMES = {
    "AcceleratorChoice": "ostler.config.accelerator",
    "PortConfig": "ostler.config.console",
    "PortKind": "ostler.config.console",
    "CpuConfig": "ostler.config.cpu",
    "CpuModelConfig": "ostler.config.cpu",
    "SoftJit": "ostler.config.cpu",
    "DebugExitConfig": "ostler.config.devices",
    "DeviceConfig": "ostler.config.devices",
    "ScsiGenericConfig": "ostler.config.devices",
    "VirtioBalloonConfig": "ostler.config.devices",
    "VirtioConsoleConfig": "ostler.config.devices",
    "VirtioKeyboardConfig": "ostler.config.devices",
    "VirtioMemConfig": "ostler.config.devices",
    "VirtioRngConfig": "ostler.config.devices",
    "VirtioShareConfig": "ostler.config.devices",
    "VirtioTabletConfig": "ostler.config.devices",
    "VirtioVsockConfig": "ostler.config.devices",
    "parse_device": "ostler.config.devices",
    "DiskConfig": "ostler.config.disk",
    "DEFAULT_NAME": "ostler.config.machine",
    "MachineConfig": "ostler.config.machine",
    "MemoryConfig": "ostler.config.memory",
    "NetConfig": "ostler.config.net",
    "PublishConfig": "ostler.config.net",
    "parse_nets": "ostler.config.net",
    "SerialConfig": "ostler.config.serial",
    "SerialKind": "ostler.config.serial",
    "format_size": "ostler.config.size",
    "parse_size": "ostler.config.size",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ostler.config' has no attribute {name!r}")

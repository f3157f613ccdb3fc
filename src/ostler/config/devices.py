"""Devices a guest gets on request: `--device KIND[,key=value...]`.

`packed=off` offers a virtio device's driver no packed rings, only split ones.
"""

from __future__ import annotations

import msgspec

from ostler.config.options import build, split_options
from ostler.errors import ConfigError


class DebugExitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="debug-exit"):
    """A port to which a write of V ends the VM with exit code V << 1 | 1."""

    iobase: int = 0x501

    def __post_init__(self) -> None:
        if not 0 <= self.iobase <= 0xFFFC:
            raise ConfigError(
                f"--device debug-exit: iobase {self.iobase:#x} is no I/O port; give 0x0 to 0xfffc"
            )


class VirtioRngConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-rng"):
    """A source of random numbers from the host."""

    packed: bool = True


class VirtioConsoleConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-console"
):
    """A fast console, `hvc0` in Linux, that shares the serial port's other end."""

    packed: bool = True


class VirtioBalloonConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-balloon"
):
    """Gives memory that the guest can spare back to the host.

    `deflate_on_oom`: a guest that runs out takes memory back by itself. `reporting`: memory that
    the guest frees comes back without being asked for.
    """

    deflate_on_oom: bool = True
    reporting: bool = True
    packed: bool = True


DeviceConfig = DebugExitConfig | VirtioRngConfig | VirtioConsoleConfig | VirtioBalloonConfig

KINDS: dict[str, type[DeviceConfig]] = {
    "debug-exit": DebugExitConfig,
    "virtio-rng": VirtioRngConfig,
    "virtio-console": VirtioConsoleConfig,
    "virtio-balloon": VirtioBalloonConfig,
}


def parse_device(text: str) -> DeviceConfig:
    """From what follows `--device`."""
    kind, values = split_options(text, "--device")
    if kind not in KINDS:
        raise ConfigError(
            f"--device {kind!r}: there is no such device; there is: {', '.join(KINDS)}"
        )
    return build(KINDS[kind], values, f"--device {kind}")

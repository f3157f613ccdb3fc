"""Devices a guest gets on request: `--device KIND[,key=value...]`.

`packed=off` offers a virtio device's driver no packed rings, only split ones.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ostler.config.options import build, split_options
from ostler.config.size import format_size, parse_size
from ostler.errors import ConfigError

# virtio 1.2, section 5.10.4: the context ids that are not reserved.
MAX_TAG_BYTES = 31  # Linux's limit on virtiofs tags, so that one name serves both
# What virtio-mem maps at once, and the most it may have.
MEM_STEP_BYTES, MAX_MEM_BYTES = 128 << 20, 1 << 40
FIRST_GUEST_CID, LAST_GUEST_CID = 3, 0xFFFF_FFFE


class DebugExitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="debug-exit"):
    """A port to which a write of V ends the VM with exit code V << 1 | 1."""

    iobase: int = 0x501

    def __post_init__(self) -> None:
        if not 0 <= self.iobase <= 0xFFFC:
            raise ConfigError(
                f"--device debug-exit: iobase {self.iobase:#x} is no I/O port; give 0x0 to 0xfffc"
            )


class VirtioRngConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-rng"):
    """A source of random numbers from the host, at most `rate` bytes a second; 0 is no limit."""

    rate: int = 0
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


class VirtioVsockConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-vsock"
):
    """Sockets between the guest, by its context id `cid`, and unix sockets at `path`."""

    cid: int
    path: str = ""
    packed: bool = True

    def __post_init__(self) -> None:
        if not FIRST_GUEST_CID <= self.cid <= LAST_GUEST_CID:
            raise ConfigError(
                f"--vsock {self.cid}: a guest's context id is {FIRST_GUEST_CID} to"
                f" {LAST_GUEST_CID}; 0 to 2 are taken"
            )

    @classmethod
    def parse(cls, text: str) -> VirtioVsockConfig:
        """From what follows `--vsock`: `CID[,path=PATH]`."""
        cid, values = split_options(text, "--vsock")
        return build(cls, values, f"--vsock {cid}", cid=cid)


class VirtioShareConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-9p"):
    """The directory `path` as a file system that the guest mounts by the name `mount_tag`."""

    path: Path
    mount_tag: str
    readonly: bool = False
    packed: bool = True

    def __post_init__(self) -> None:
        if not self.mount_tag or len(self.mount_tag.encode()) > MAX_TAG_BYTES:
            raise ConfigError(
                f"--share {self.path}: a tag has 1 to {MAX_TAG_BYTES} bytes; write DIR:TAG"
            )

    @classmethod
    def parse(cls, text: str) -> VirtioShareConfig:
        """From what follows `--share`: `DIR:TAG[,readonly=on]`."""
        place, values = split_options(text, "--share")
        path, _, tag = place.rpartition(":")
        if not path:
            raise ConfigError(f"--share {text!r}: name it for the guest, too; write DIR:TAG")
        return build(cls, values, f"--share {place}", path=path, mount_tag=tag)


class VirtioKeyboardConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-keyboard"
):
    """A keyboard for guests with a virtio-input driver."""

    packed: bool = True


class VirtioTabletConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-tablet"
):
    """A pointer that knows where it is, for guests with a virtio-input driver."""

    packed: bool = True


class VirtioMemConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="virtio-mem"):
    """Room for up to `size` of memory that comes and goes while the guest runs."""

    size: str | int
    packed: bool = True

    def __post_init__(self) -> None:
        step = MEM_STEP_BYTES
        if self.size_bytes % step or not step <= self.size_bytes <= MAX_MEM_BYTES:
            raise ConfigError(
                f"--device virtio-mem,size={self.size}: give a multiple of {format_size(step)},"
                f" up to {format_size(MAX_MEM_BYTES)}"
            )

    @property
    def size_bytes(self) -> int:
        """The room in bytes."""
        return parse_size(self.size, "--device virtio-mem: size")


class ScsiGenericConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="scsi-generic"
):
    """The host's SCSI device at `path`, to which the guest's commands are passed on as they are.

    The guest can do with it all that this user can: format it, or change its firmware. `path` is
    `/dev/sgN`, or the block device of a SCSI device.
    """

    path: str
    packed: bool = True


DeviceConfig = (
    DebugExitConfig
    | VirtioRngConfig
    | VirtioConsoleConfig
    | VirtioBalloonConfig
    | VirtioVsockConfig
    | VirtioShareConfig
    | VirtioKeyboardConfig
    | VirtioTabletConfig
    | VirtioMemConfig
    | ScsiGenericConfig
)

KINDS: dict[str, type[DeviceConfig]] = {
    "debug-exit": DebugExitConfig,
    "virtio-rng": VirtioRngConfig,
    "virtio-console": VirtioConsoleConfig,
    "virtio-balloon": VirtioBalloonConfig,
    "virtio-vsock": VirtioVsockConfig,
    "virtio-9p": VirtioShareConfig,
    "virtio-keyboard": VirtioKeyboardConfig,
    "virtio-tablet": VirtioTabletConfig,
    "virtio-mem": VirtioMemConfig,
    "scsi-generic": ScsiGenericConfig,
}


def parse_device(text: str) -> DeviceConfig:
    """From what follows `--device`."""
    kind, values = split_options(text, "--device")
    if kind not in KINDS:
        raise ConfigError(
            f"--device {kind!r}: there is no such device; there is: {', '.join(KINDS)}"
        )
    return build(KINDS[kind], values, f"--device {kind}")

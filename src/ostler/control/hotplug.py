"""Memory that comes and goes while a VM runs, as its owner sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostler.config import format_size, parse_size
from ostler.errors import ConfigError

if TYPE_CHECKING:
    from ostler.control.vm import VM
    from ostler.devices.virtio.mem import VirtioMem


class Hotplug:
    """`vm.hotplug`: memory besides what the guest has started with.

    `ConfigError` where the machine has no virtio-mem, or does not run.
    """

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    @property
    def target(self) -> int:
        """The memory in bytes that the guest is asked to have plugged; set it as `"1G"`, too.

        The guest follows as fast as its driver can, and may not be able to give all of it back;
        `plugged` says how far it has come.
        """
        return self._device.requested_bytes

    @target.setter
    def target(self, size: str | int) -> None:
        device, target_bytes = self._device, parse_size(size, "hotplug.target")
        if not 0 <= target_bytes <= device.size_bytes:
            most = format_size(device.size_bytes)
            raise ConfigError(f"hotplug.target {size!r}: there is room for {most}; give less")
        device.request(target_bytes)

    @property
    def plugged(self) -> int:
        """The memory in bytes that the guest has plugged."""
        return self._device.plugged_bytes

    @property
    def limit(self) -> int:
        """The most there can be, in bytes."""
        return self._device.size_bytes

    @property
    def _device(self) -> VirtioMem:
        try:
            device = self._vm.device("mem")
        except ConfigError:
            raise ConfigError("this VM has no virtio-mem now; give it one and start it") from None
        return device.device  # type: ignore[no-any-return]  # the name says what it is

"""A VM's memory balloon, as its owner sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostler.config import parse_size
from ostler.errors import ConfigError, WaitTimeout

if TYPE_CHECKING:
    from ostler.control.vm import VM
    from ostler.devices.virtio.balloon import VirtioBalloon

STATISTICS_TIMEOUT_S = 10.0


class Balloon:
    """`vm.balloon`: how much memory the guest keeps.

    `ConfigError` where the machine has no balloon, or does not run.
    """

    def __init__(self, vm: VM) -> None:
        self._vm = vm

    @property
    def target(self) -> int:
        """The memory in bytes that the guest is asked to be content with; set it as `"256M"`, too.

        The guest follows as fast as its driver can; `memory` says how far it has come.
        """
        return self._device.target_bytes

    @target.setter
    def target(self, size: str | int) -> None:
        device, target_bytes = self._device, parse_size(size, "balloon.target")
        if not 0 <= target_bytes <= device.memory_bytes:
            raise ConfigError(
                f"balloon.target {size!r}: the guest has {device.memory_bytes} bytes; give less"
            )
        device.set_target(target_bytes)

    @property
    def memory(self) -> int:
        """The memory in bytes that the guest has now, without what is in the balloon."""
        return self._device.guest_bytes

    @property
    def returned_bytes(self) -> int:
        """Bytes that the guest gave back to the host so far, by inflating, reporting or lending."""
        return self._device.returned_bytes

    def statistics(self, timeout: float = STATISTICS_TIMEOUT_S) -> dict[str, int]:
        """What the guest says of its memory: `free_bytes`, `available_bytes`, `major_faults`...

        `WaitTimeout` when its driver does not answer within `timeout` seconds.
        """
        statistics = self._device.fresh_statistics(timeout)
        if statistics is None:
            raise WaitTimeout(
                f"the guest's balloon driver has not answered after {timeout} s; is it loaded?"
            )
        return statistics

    def collect_free_pages(self) -> None:
        """Have the guest lend its free pages for a moment, so that the host gets them now."""
        self._device.collect_free_pages()

    @property
    def _device(self) -> VirtioBalloon:
        try:
            device = self._vm.device("balloon")
        except ConfigError:
            raise ConfigError(
                "this VM has no balloon now; give it a virtio-balloon and start it"
            ) from None
        return device.device  # type: ignore[no-any-return]  # the name says what it is

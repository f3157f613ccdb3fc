"""What a virtio PCI function remembers: the registers of the common configuration structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ostler.devices.pci.device import PciState
from ostler.errors import StateError

NO_VECTOR = 0xFFFF
MAX_QUEUE_SIZE = 1 << 15
# Where a packed ring begins: at descriptor 0, with both wrap counters (bit 15) at 1.
PACKED_START = 1 << 15

# Device status (virtio 1.2, section 2.1).
ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
NEEDS_RESET = 64
FAILED = 128
DRIVER_BITS = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED

ISR_QUEUE = 1
ISR_CONFIG = 2


@dataclass(slots=True)
class QueueState:
    """One queue's registers, and where its worker stands."""

    size: int
    vector: int = NO_VECTOR
    enabled: bool = False
    desc_table: int = 0
    avail_ring: int = 0
    used_ring: int = 0
    next_avail: int = 0
    next_used: int = 0

    def start_over(self, packed: bool) -> None:
        """Stand where a ring of that layout begins."""
        self.next_avail = self.next_used = PACKED_START if packed else 0

    def validate(self) -> None:
        """Raise `StateError` for a value no register can hold."""
        words = (self.vector, self.next_avail, self.next_used)
        rings = (self.desc_table, self.avail_ring, self.used_ring)
        if not all(0 <= word < 1 << 16 for word in words) or not 0 < self.size <= MAX_QUEUE_SIZE:
            raise StateError("virtqueue: size, vector or position out of range")
        if not all(0 <= ring < 1 << 64 for ring in rings):
            raise StateError("virtqueue: ring address out of range")


@dataclass(slots=True)
class VirtioPciState(PciState):
    """The common configuration registers and the device's own state."""

    device_feature_select: int = 0
    driver_feature_select: int = 0
    driver_features: int = 0
    config_vector: int = NO_VECTOR
    status: int = 0
    needs_reset: bool = False
    generation: int = 0
    queue_select: int = 0
    isr: int = 0
    queues: list[QueueState] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        """Raise `StateError` for a value no register can hold."""
        PciState.validate(self)
        for queue in self.queues:
            queue.validate()
        selects = (self.device_feature_select, self.driver_feature_select)
        if not all(0 <= select < 1 << 32 for select in selects):
            raise StateError("virtio-pci: feature select out of range")
        if not 0 <= self.driver_features < 1 << 64 or not 0 <= self.status < 1 << 8:
            raise StateError("virtio-pci: features or status out of range")
        words = (self.config_vector, self.queue_select)
        if not all(0 <= word < 1 << 16 for word in words):
            raise StateError("virtio-pci: vector or queue number out of range")
        if not 0 <= self.generation < 1 << 8 or not 0 <= self.isr <= ISR_QUEUE | ISR_CONFIG:
            raise StateError("virtio-pci: generation or ISR out of range")


def is_queue_size(size: int, packed: bool) -> bool:
    """Whether a virtqueue can have `size` entries; a split one has a power of two."""
    return 0 < size <= MAX_QUEUE_SIZE and (packed or size & (size - 1) == 0)

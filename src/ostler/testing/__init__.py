"""For tests, ours and yours: a fake machine, virtual time, and the device contract as a check."""

from ostler.testing.clock import VirtualClock
from ostler.testing.conformance import check_device
from ostler.testing.image_format import check_image_format
from ostler.testing.machine import FakeIrqLine, FakeMachine, FakeMemory, FakeRequests

__all__ = [
    "FakeIrqLine",
    "FakeMachine",
    "FakeMemory",
    "FakeRequests",
    "VirtualClock",
    "check_device",
    "check_image_format",
]

"""Stand-ins for what a device is wired to. They record; tests look at what they recorded."""

from __future__ import annotations

from ostler.testing.clock import VirtualClock


class FakeIrqLine:
    """An interrupt line that remembers its level and counts rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set_level(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class FakeMemory:
    """`size` bytes of guest memory at `base`."""

    def __init__(self, size: int = 1 << 20, base: int = 0) -> None:
        self.base = base
        self.data = bytearray(size)

    def read(self, gpa: int, length: int) -> bytes:
        start = self._offset(gpa, length)
        return bytes(self.data[start : start + length])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        start = self._offset(gpa, len(data))
        self.data[start : start + len(data)] = data

    def _offset(self, gpa: int, length: int) -> int:
        offset = gpa - self.base
        if offset < 0 or offset + length > len(self.data):
            raise IndexError(f"no memory at {gpa:#x}")
        return offset


class FakeRequests:
    """Records what devices ask of the machine, in order."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def power_off(self) -> None:
        self.made.append("power-off")

    def reset(self, source: str) -> None:
        self.made.append(f"reset: {source}")

    def panic(self) -> None:
        self.made.append("panic")

    def exit(self, code: int) -> None:
        self.made.append(f"exit: {code}")


class FakeMachine:
    """Everything a device can be wired to; `ostler.devices.registry.Surroundings` for tests."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.memory = FakeMemory()
        self.requests = FakeRequests()
        self.irqs: dict[int, FakeIrqLine] = {}

    @property
    def timers(self) -> VirtualClock:
        return self.clock

    @property
    def wall(self) -> VirtualClock:
        return self.clock

    def irq_line(self, gsi: int) -> FakeIrqLine:
        return self.irqs.setdefault(gsi, FakeIrqLine())

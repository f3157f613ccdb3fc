"""A PCI function by which a guest reports its panics: Linux's `pvpanic-pci` drives it."""

from ostler.devices.pci.config_space import Bar, Identity
from ostler.devices.pci.device import PciDevice, PciState, Region
from ostler.machine.virt import VirtBoard

PANICKED, CRASH_LOADED = 1, 2


class Events:
    """The one register, in BAR 0: reads say which events are known, writes report one."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return PANICKED | CRASH_LOADED if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.seen.append(value)
            print("the guest reports", "a panic" if value & PANICKED else "a crash kernel")


class PanicReporter(PciDevice[PciState]):
    """Vendor, device and class are those by which the driver finds it."""

    name, State = "panic-reporter", PciState

    def __init__(self) -> None:
        self.events = Events()
        identity = Identity(vendor=0x1B36, device=0x0011, class_code=0x088000)
        super().__init__(identity, (Bar(0, 16),), [Region(0, 0, 16, self.events, "events")])


def plug(board: VirtBoard) -> None:
    board.plug("panic-reporter", PanicReporter())

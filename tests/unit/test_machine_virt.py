from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.config import CpuConfig, MachineConfig, MemoryConfig, parse_device
from ostler.devices.fw_cfg import ID_TRADITIONAL_AND_DMA
from ostler.devices.pci.device import Space
from ostler.errors import ConfigError
from ostler.firmware.acpi.tables import RSDP_GPA
from ostler.firmware.plan import E820_RAM
from ostler.machine import memory_map as at
from ostler.machine.board import Host
from ostler.machine.boot import acpi_tables
from ostler.machine.paper import PaperWorkers
from ostler.machine.virt import VirtBoard
from ostler.testing import FakeIrqLine, FakeMachine
from ostler.testing.pci import FakeBus, FakeRoute

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
SIZES = st.integers(2 * MIB // 4096, 32 * TIB // 4096).map(lambda pages: pages * 4096)


class SlottedMemory:
    """Memory that only notes where RAM is."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, int]] = {}

    def add_slot(self, slot: int, gpa: int, size: int) -> None:
        self.slots[slot] = (gpa, size)

    def remove_slot(self, slot: int) -> None:
        del self.slots[slot]

    def discard(self, gpa: int, size: int) -> int:
        return 0

    def read(self, gpa: int, length: int) -> bytes:
        return bytes(length)

    def write(self, gpa: int, data: bytes) -> None:
        pass


class FakeHardware:
    """A board's other side, with a bus a test can use as a guest would."""

    def __init__(self) -> None:
        self.machine = FakeMachine()
        self.clock, self.bus, self.memory = self.machine.clock, FakeBus(), SlottedMemory()
        self.has_irqchip = False
        self.coalesced: list[tuple[Space, int, int]] = []

    def create_irqchip(self) -> None:
        self.has_irqchip = True

    def coalesce(self, space: Space, base: int, size: int) -> bool:
        self.coalesced.append((space, base, size))
        return True

    def irq_line(self, gsi: int) -> FakeIrqLine:
        return self.machine.irq_line(gsi)

    def msi_route(self) -> FakeRoute:
        return FakeRoute()


class Terminal:
    def __init__(self) -> None:
        self.sent = b""

    def transmit(self, data: bytes) -> None:
        self.sent += data

    def receive(self, limit: int) -> bytes:
        return b""

    def take_back(self, data: bytes) -> None:
        pass


class Guest:
    """A board and what a guest can do to it."""

    def __init__(self, config: MachineConfig) -> None:
        self.hardware, self.terminal = FakeHardware(), Terminal()
        machine = self.hardware.machine
        self.requests = machine.requests
        host = Host(
            serial=self.terminal,
            timers=machine.timers,
            wall=machine.wall,
            requests=self.requests,
            workers=PaperWorkers(),
        )
        self.board = VirtBoard(config, self.hardware, host)

    def out(self, port: int, value: int, size: int = 1) -> None:
        self.hardware.bus.write("pio", port, size, value)

    def get(self, address: int, size: int = 1, space: Space = "pio") -> int:
        return self.hardware.bus.read(space, address, size)


def config(*devices: str, memory: str = "512M", cpus: int = 1) -> MachineConfig:
    return MachineConfig(
        kernel=Path("vmlinuz"),
        memory=MemoryConfig.parse(memory),
        cpu=CpuConfig(cpus),
        devices=tuple(parse_device(device) for device in devices),
    )


@pytest.fixture
def guest() -> Guest:
    return Guest(config("debug-exit,iobase=0xf4", "virtio-rng"))


@given(SIZES)
def test_memory_map_has_all_ram_below_and_above_the_hole(size: int) -> None:
    regions = at.ram_regions(size)
    assert sum(region.size for region in regions) == size
    assert all(region.gpa + region.size <= 3 * GIB or region.gpa == 4 * GIB for region in regions)


@given(SIZES)
def test_memory_map_e820_is_in_order_and_within_ram(size: int) -> None:
    rows = at.e820(size)
    assert all(low.end <= high.base for low, high in pairwise(rows))
    ram = sum(row.size for row in rows if row.kind == E820_RAM)
    assert ram == size - (at.BIOS_AREA_END - at.BASE_MEMORY_END)


@given(SIZES)
def test_memory_map_pci_window_lies_above_ram_within_46_bits(size: int) -> None:
    windows, last = at.pci_windows(size), at.ram_regions(size)[-1]
    assert last.gpa + last.size <= windows.high_base
    assert windows.high_base + windows.high_bytes <= 1 << 46


def test_virt_puts_ram_where_the_map_says(guest: Guest) -> None:
    assert guest.hardware.memory.slots == {0: (0, 512 * MIB)}
    assert guest.hardware.has_irqchip


def test_virt_serial_port_reaches_the_terminal(guest: Guest) -> None:
    guest.out(0x3F8, ord("!"))
    assert guest.terminal.sent == b"!"


@pytest.mark.parametrize(
    ("port", "value", "size", "request_made"),
    [
        (0x64, 0xFE, 1, "reset: keyboard controller"),
        (0xCF9, 0x06, 1, "reset: reset control register"),
        (0x604, 5 << 10 | 1 << 13, 2, "power-off"),
        (0xF4, 0x10, 1, "exit: 33"),
    ],
)
def test_virt_guest_ends_itself_by_port(
    guest: Guest, port: int, value: int, size: int, request_made: str
) -> None:
    guest.out(port, value, size)
    assert guest.requests.made == [request_made]


def test_virt_power_button_raises_the_sci(guest: Guest) -> None:
    guest.out(0x602, 1 << 8, 2)
    guest.board.pm.press_power_button()
    assert guest.hardware.machine.irqs[9].level


def test_virt_rtc_keyboard_controller_and_fw_cfg_answer(guest: Guest) -> None:
    guest.out(0x70, 0x0D)
    assert guest.get(0x71) == 0x80
    guest.out(0x64, 0xAA)
    assert guest.get(0x60) == 0x55
    guest.out(0x510, 1, 2)
    assert guest.get(0x511) == ID_TRADITIONAL_AND_DMA


def test_virt_index_registers_may_wait_and_the_reset_register_may_not(guest: Guest) -> None:
    zones = guest.hardware.coalesced
    assert zones == [("pio", 0x70, 1), ("pio", 0x510, 2)]
    assert not any(base <= 0xCF9 < base + size for _, base, size in zones)


def test_virt_pci_shows_the_bridge_and_virtio_devices(guest: Guest) -> None:
    assert guest.get(0xE000_0000, 4, "mmio") == 0x0008_1B36
    assert guest.get(0xE000_8000, 4, "mmio") == 0x1044_1AF4
    guest.out(0xCF8, 1 << 31 | 1 << 11, 4)
    assert guest.get(0xCFC, 4) == 0x1044_1AF4


def test_virt_reset_equals_a_new_board(guest: Guest) -> None:
    for port in (0x3FF, 0x70, 0x602, 0xCFC):
        guest.out(port, 0x24, 1)
    guest.board.reset()
    fresh = Guest(guest.board.config).board
    # What tells machines apart is the one thing that a new board does not share with this one.
    fresh.vmgenid.load(guest.board.vmgenid.save())
    assert {name: device.save() for name, device in guest.board.devices.items()} == {
        name: device.save() for name, device in fresh.devices.items()
    }


def test_virt_closed_leaves_bus_and_memory_empty(guest: Guest) -> None:
    guest.board.close()
    assert guest.hardware.bus.ranges == {}
    assert guest.hardware.memory.slots == {}


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (("debug-exit,iobase=0x3f9",), "0x3f9 belongs to serial already; try 0xf4"),
        (("debug-exit,iobase=0x20",), "belongs to pic already"),
        (("debug-exit,iobase=0xf4", "debug-exit,iobase=0xf6"), "belongs to debug-exit already"),
        (("virtio-rng", "virtio-rng"), "a machine has one"),
    ],
)
def test_virt_devices_that_do_not_fit_are_refused(devices: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Guest(config(*devices))


def test_virt_acpi_tables_fit_below_the_bios_area_end() -> None:
    tables = acpi_tables(config(memory="6G", cpus=64))
    assert tables.startswith(b"RSD PTR ")
    assert RSDP_GPA + len(tables) <= at.BIOS_AREA_END

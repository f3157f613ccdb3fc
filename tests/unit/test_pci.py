"""Configuration space, the host bridge, BAR mapping, INTx and MSI-X."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ostler.devices.pci.config_space import Bar, ConfigLayout, Identity
from ostler.devices.pci.device import PciDevice, PciState, Region
from ostler.devices.pci.host import PciHost, intx_gsi
from ostler.devices.pci.msix import Msix
from ostler.errors import ConfigError, StateError
from ostler.testing.pci import FakeBus, FakeLine, FakeRoute

ONES = 0xFFFF_FFFF
COMMAND, BAR0, BAR1 = 0x04, 0x10, 0x14
MEMORY_DECODE = 2


class Window:
    """Scratch registers in a BAR."""

    def __init__(self) -> None:
        self.bytes = bytearray(64)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")


class Widget(PciDevice[PciState]):
    """A device with a window, a doorbell and two MSI-X vectors."""

    name = "widget"
    State = PciState

    def __init__(self, doorbell: int = 99) -> None:
        self.window = Window()
        super().__init__(
            Identity(0x1234, 0x5678, 0xFF0000, 3, interrupt_pin=1),
            (Bar(0, 0x4000, "mem64"), Bar(2, 0x20, "io")),
            (
                Region(0, 0, 64, self.window, "window"),
                Region(0, 0x1000, 4, doorbell, "doorbell"),
                Region(2, 0, 32, self.window, "ports"),
            ),
            Msix(2, 0, 0x2000, 0x3000),
        )


@dataclass
class Board:
    bus: FakeBus
    host: PciHost
    lines: dict[int, FakeLine]
    routes: list[FakeRoute]

    def config(self, slot: int, offset: int, size: int = 4) -> int:
        return self.bus.read("mmio", 0xE000_0000 + (slot << 15) + offset, size)

    def set_config(self, slot: int, offset: int, value: int, size: int = 4) -> None:
        self.bus.write("mmio", 0xE000_0000 + (slot << 15) + offset, size, value)


@pytest.fixture
def board() -> Board:
    bus, lines, routes = FakeBus(), {gsi: FakeLine() for gsi in range(16, 20)}, []

    def new_route() -> FakeRoute:
        routes.append(FakeRoute())
        return routes[-1]

    return Board(bus, PciHost(bus, lines.__getitem__, new_route), lines, routes)


def test_config_mechanism_1_host_bridge_is_found_and_empty_slots_read_ones(board: Board) -> None:
    board.bus.write("pio", 0xCF8, 4, 0x8000_0000)
    assert board.bus.read("pio", 0xCFC, 4) == 0x0008_1B36
    assert board.bus.read("pio", 0xCFE, 2) == 0x0008
    board.bus.write("pio", 0xCF8, 4, 0x8000_0800)
    assert board.bus.read("pio", 0xCFC, 4) == ONES
    board.bus.write("pio", 0xCF8, 4, 0x8001_0000)
    assert board.bus.read("pio", 0xCFC, 4) == ONES


def test_config_mechanism_1_without_enable_bit_reads_ones(board: Board) -> None:
    board.bus.write("pio", 0xCF8, 4, 0x0000_0000)
    assert board.bus.read("pio", 0xCFC, 4) == ONES
    assert board.bus.read("pio", 0xCF8, 4) == 0


def test_config_address_byte_store_reaches_the_reset_register_not_the_latch() -> None:
    reset = Window()
    bus = FakeBus()
    host = PciHost(bus, lambda _: FakeLine(), FakeRoute, reset_register=reset)
    bus.write("pio", 0xCF9, 1, 6)
    assert reset.bytes[0] == 6
    assert bus.read("pio", 0xCF9, 1) == 6
    assert host.state.address == 0


def test_ecam_function_1_and_extended_space_read_ones(board: Board) -> None:
    board.host.attach(Widget())
    assert board.config(1, 0) == 0x5678_1234
    assert board.config(1, 0x1000) == ONES
    assert board.config(1, 0x100) == ONES


def test_attach_slot_taken_is_refused(board: Board) -> None:
    assert board.host.attach(Widget(), 5) == 5
    with pytest.raises(ConfigError, match="slot 5"):
        board.host.attach(Widget(), 5)
    assert board.host.attach(Widget()) == 1


def test_attach_configures_bars_below_4_gib_and_turns_decoding_on(board: Board) -> None:
    board.host.attach(Widget())
    base = board.config(1, BAR0) & ~0xF
    assert 0xC000_0000 <= base < 0xE000_0000
    assert board.config(1, BAR1) == 0
    board.bus.write("mmio", base + 4, 4, 0xABCD)
    assert board.bus.read("mmio", base + 4, 4) == 0xABCD
    assert board.bus.read("pio", board.config(1, 0x18) & ~3, 4) == 0
    board.bus.write("mmio", base + 0x1000, 2, 0)
    assert board.bus.rings == [99]


def test_bar_sizing_gives_the_size_and_the_kind(board: Board) -> None:
    board.host.attach(Widget())
    board.set_config(1, BAR0, ONES)
    board.set_config(1, BAR1, ONES)
    assert board.config(1, BAR0) == 0xFFFF_C004
    assert board.config(1, BAR1) == ONES
    board.set_config(1, 0x18, ONES)
    assert board.config(1, 0x18) == 0xFFFF_FFE1
    board.set_config(1, 0x20, ONES)
    assert board.config(1, 0x20) == 0


def test_bar_moved_moves_the_ranges(board: Board) -> None:
    board.host.attach(Widget())
    old = board.config(1, BAR0) & ~0xF
    board.set_config(1, COMMAND, 0)
    assert board.bus.read("mmio", old, 4) == ONES
    board.set_config(1, BAR0, 0x4000_0000)
    board.set_config(1, BAR1, 0x10)
    board.set_config(1, COMMAND, MEMORY_DECODE)
    assert board.bus.read("mmio", old, 4) == ONES
    assert board.bus.read("mmio", 0x10_4000_0000, 4) == 0


def test_bar_over_another_device_leaves_the_other_in_place(board: Board) -> None:
    first, second = Widget(), Widget()
    board.host.attach(first)
    board.host.attach(second)
    base = board.config(1, BAR0) & ~0xF
    first.window.bytes[0] = 7
    board.set_config(2, BAR0, base)
    assert board.bus.read("mmio", base, 1) == 7
    board.set_config(2, BAR0, base + 0x10_0000)
    assert board.bus.read("mmio", base + 0x10_0000, 1) == 0
    assert board.bus.read("mmio", base, 1) == 7


def test_status_error_bits_clear_on_one_and_identity_is_read_only() -> None:
    layout = ConfigLayout(Identity(0x1234, 0x5678, 0))
    config = bytearray(layout.initial)
    config[0x07] = 0xF9
    stored = layout.stored(bytes(config), 0x06, 2, 0x8000)
    assert stored[0x07] == 0x79
    assert layout.stored(stored, 0, 4, 0)[:4] == bytes.fromhex("34127856")


def test_capability_list_is_linked_and_ends(board: Board) -> None:
    board.host.attach(Widget())
    assert board.config(1, 0x06, 2) & 0x10
    at = board.config(1, 0x34, 1)
    assert board.config(1, at, 2) == 0x11
    assert board.config(1, at + 2, 2) == 1
    assert board.config(1, at + 4) == 0x2000
    assert board.config(1, at + 8) == 0x3000


def test_intx_shared_line_is_the_or_of_its_slots(board: Board) -> None:
    first, second = Widget(), Widget()
    board.host.attach(first, 1)
    board.host.attach(second, 5)
    assert intx_gsi(1) == intx_gsi(5) == 17
    line = board.lines[17]
    first.set_intx(True)
    second.set_intx(True)
    first.set_intx(False)
    assert line.level
    assert board.config(5, 0x06, 2) & 8
    board.set_config(5, COMMAND, 1 << 10, 2)
    assert not line.level
    board.set_config(5, COMMAND, 0, 2)
    assert line.level
    second.set_intx(False)
    assert not line.level


def msix_widget(board: Board) -> tuple[Widget, int, int]:
    widget = Widget()
    board.host.attach(widget)
    table = (board.config(1, BAR0) & ~0xF) + 0x2000
    for offset, value in ((0, 0xFEE0_0000), (4, 0), (8, 0x41)):
        board.bus.write("mmio", table + offset, 4, value)
    return widget, table, board.config(1, 0x34, 1)


def test_msix_vector_unmasked_and_enabled_sends_its_message(board: Board) -> None:
    widget, table, capability = msix_widget(board)
    assert widget.msix is not None
    route = board.routes[0]
    board.set_config(1, capability + 2, 0x8000, 2)
    route.signal()
    assert (route.pending, route.sent) == (True, [])
    assert board.bus.read("mmio", table + 0x1000, 8) == 1
    board.bus.write("mmio", table + 12, 4, 0)
    assert route.sent == [(0xFEE0_0000, 0x41)]
    assert board.bus.read("mmio", table + 0x1000, 4) == 0


def test_msix_function_mask_holds_every_vector(board: Board) -> None:
    _, table, capability = msix_widget(board)
    board.bus.write("mmio", table + 12, 4, 0)
    board.set_config(1, capability + 2, 0xC000, 2)
    board.routes[0].signal()
    assert not board.routes[0].sent
    board.set_config(1, capability + 2, 0x8000, 2)
    assert len(board.routes[0].sent) == 1


def test_msix_table_takes_eight_byte_accesses_and_reads_back(board: Board) -> None:
    _, table, _ = msix_widget(board)
    board.bus.write("mmio", table + 16, 8, 0x1_FEE0_1003)
    board.bus.write("mmio", table + 24, 8, 0x0000_0000_0000_0055)
    assert board.bus.read("mmio", table + 16, 8) == 0x1_FEE0_1000
    assert board.bus.read("mmio", table + 24, 8) == 0x55
    assert board.bus.read("mmio", table + 16, 2) == 0xFFFF
    board.bus.write("mmio", table + 17, 2, 0)
    assert board.bus.read("mmio", table + 16, 8) == 0x1_FEE0_1000


def test_state_saved_and_loaded_restores_bars_vectors_and_pending(board: Board) -> None:
    widget, table, capability = msix_widget(board)
    board.set_config(1, capability + 2, 0x8000, 2)
    board.routes[0].signal()
    saved = widget.save()
    board.host.reset()
    assert widget.state.vectors[0].address == 0
    widget.load(saved)
    assert widget.save() == saved
    assert board.routes[0].pending
    assert board.bus.read("mmio", table + 8, 4) == 0x41


@pytest.mark.parametrize(
    "damage",
    [
        {"config": bytes(255)},
        {"config": bytes(256)},
        {"vectors": []},
        {"intx_level": 7},
    ],
)
def test_state_damaged_is_refused_and_changes_nothing(
    board: Board, damage: dict[str, object]
) -> None:
    widget = Widget()
    board.host.attach(widget)
    before = widget.save()
    with pytest.raises(StateError):
        widget.load(before | damage)
    assert widget.save() == before


def test_reset_gives_bars_their_addresses_again(board: Board) -> None:
    board.host.attach(Widget())
    base = board.config(1, BAR0)
    board.set_config(1, COMMAND, 0)
    board.set_config(1, BAR0, 0)
    board.host.slots[1].reset()
    assert board.config(1, BAR0) == base
    board.host.reset()
    assert board.config(1, BAR0) == base
    assert board.bus.read("mmio", base & ~0xF, 4) == 0


def test_bar_too_large_for_the_low_window_goes_above_4_gib(board: Board) -> None:
    class Huge(PciDevice[PciState]):
        name = "huge"
        State = PciState

    board.host.attach(Huge(Identity(1, 2, 0), (Bar(0, 1 << 30, "mem64"),)))
    assert board.config(1, BAR1) << 32 == 64 << 30


def test_bar_of_odd_size_or_past_the_last_register_is_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        Bar(0, 0x30)
    with pytest.raises(ValueError, match="exist"):
        Bar(5, 0x1000, "mem64")

import pytest

from ostler.devices.acpi_pm import (
    CONTROL,
    ENABLE,
    POWER_BUTTON_STS,
    S5_SLEEP_TYPE,
    SCI_EN,
    SLEEP_EN,
    STATUS,
    TIMER,
    TIMER_STS,
    AcpiPm,
)
from ostler.devices.debug_exit import DebugExit
from ostler.devices.i8042 import COMMAND_STATUS, DATA, I8042, STATUS_OUTPUT_FULL, STATUS_TIMEOUT
from ostler.devices.reset_control import ResetControl
from ostler.testing import FakeMachine


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def pm(machine: FakeMachine) -> AcpiPm:
    return AcpiPm(machine.irq_line(9), machine.clock, machine.timers, machine.requests)


@pytest.fixture
def keyboard(machine: FakeMachine) -> I8042:
    return I8042(machine.irq_line(1), machine.irq_line(12), machine.requests)


def test_acpi_pm_sleep_enable_with_s5_powers_off(pm: AcpiPm, machine: FakeMachine) -> None:
    pm.write(CONTROL, 2, S5_SLEEP_TYPE << 10)
    assert machine.requests.made == []
    pm.write(CONTROL, 2, S5_SLEEP_TYPE << 10 | SLEEP_EN)
    assert machine.requests.made == ["power-off"]
    assert pm.read(CONTROL, 2) == S5_SLEEP_TYPE << 10 | SCI_EN


def test_acpi_pm_sleep_enable_with_another_type_is_ignored(
    pm: AcpiPm, machine: FakeMachine
) -> None:
    pm.write(CONTROL, 2, 3 << 10 | SLEEP_EN)
    assert machine.requests.made == []


def test_acpi_pm_power_button_raises_sci_until_cleared(pm: AcpiPm, machine: FakeMachine) -> None:
    pm.press_power_button()
    assert not machine.irq_line(9).level
    pm.write(ENABLE, 2, POWER_BUTTON_STS)
    assert machine.irq_line(9).level
    pm.write(STATUS, 2, POWER_BUTTON_STS)
    assert not machine.irq_line(9).level
    assert pm.read(STATUS, 2) == 0


def test_acpi_pm_timer_counts_3579545_a_second(pm: AcpiPm, machine: FakeMachine) -> None:
    machine.clock.advance(2_000_000_000)
    assert pm.read(TIMER, 4) == 2 * 3_579_545


def test_acpi_pm_timer_overflow_raises_sci(pm: AcpiPm, machine: FakeMachine) -> None:
    pm.write(ENABLE, 2, TIMER_STS)
    machine.clock.advance(599_000_000_000)
    assert not machine.irq_line(9).level
    machine.clock.advance(2_000_000_000)
    assert machine.irq_line(9).level
    assert pm.read(STATUS, 2) == TIMER_STS


def test_i8042_pulse_of_reset_line_resets(keyboard: I8042, machine: FakeMachine) -> None:
    keyboard.write(COMMAND_STATUS, 1, 0xFE)
    assert machine.requests.made == ["reset: keyboard controller"]


def test_i8042_pulse_of_no_line_does_nothing(keyboard: I8042, machine: FakeMachine) -> None:
    keyboard.write(COMMAND_STATUS, 1, 0xFF)
    assert machine.requests.made == []


@pytest.mark.parametrize(
    ("command", "answer"), [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0x20, 0x34), (0xD0, 0x03)]
)
def test_i8042_command_is_answered_at_once(keyboard: I8042, command: int, answer: int) -> None:
    keyboard.write(COMMAND_STATUS, 1, command)
    assert keyboard.read(COMMAND_STATUS, 1) & STATUS_OUTPUT_FULL
    assert keyboard.read(DATA, 1) == answer
    assert not keyboard.read(COMMAND_STATUS, 1) & STATUS_OUTPUT_FULL


def test_i8042_byte_to_missing_keyboard_times_out_at_once(
    keyboard: I8042, machine: FakeMachine
) -> None:
    keyboard.write(COMMAND_STATUS, 1, 0x60)
    keyboard.write(DATA, 1, 0x45)
    keyboard.write(DATA, 1, 0xF2)
    assert machine.irq_line(1).level
    assert keyboard.read(COMMAND_STATUS, 1) & STATUS_TIMEOUT
    assert keyboard.read(DATA, 1) == 0xFE
    assert not machine.irq_line(1).level


def test_i8042_aux_loop_echoes_with_irq_12(keyboard: I8042, machine: FakeMachine) -> None:
    keyboard.write(COMMAND_STATUS, 1, 0x60)
    keyboard.write(DATA, 1, 0x47)
    keyboard.write(COMMAND_STATUS, 1, 0xD3)
    keyboard.write(DATA, 1, 0x5A)
    assert machine.irq_line(12).level
    assert keyboard.read(DATA, 1) == 0x5A


def test_reset_control_resets_on_rising_edge_only(machine: FakeMachine) -> None:
    register = ResetControl(machine.requests)
    register.write(0, 1, 0x02)
    assert machine.requests.made == []
    register.write(0, 1, 0x06)
    register.write(0, 1, 0x06)
    assert machine.requests.made == ["reset: reset control register"]
    assert register.read(0, 1) == 0x06


def test_debug_exit_code_is_odd_and_eight_bits(machine: FakeMachine) -> None:
    port = DebugExit(machine.requests)
    port.write(0, 1, 0)
    port.write(0, 4, 0x10)
    port.write(0, 2, 0x1FF)
    assert machine.requests.made == ["exit: 1", "exit: 33", "exit: 255"]

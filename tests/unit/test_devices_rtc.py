from datetime import UTC, datetime

import pytest

from ostler.devices.rtc import (
    A_UPDATE_IN_PROGRESS,
    ALARM_ANY,
    B_24_HOURS,
    B_ALARM,
    B_BINARY,
    B_PERIODIC,
    B_SET,
    B_UPDATE_ENDED,
    C_ALARM,
    C_INTERRUPT,
    C_PERIODIC,
    C_UPDATE_ENDED,
    CENTURY,
    DAY,
    HOURS,
    HOURS_ALARM,
    MINUTES,
    MINUTES_ALARM,
    MONTH,
    SECONDS,
    SECONDS_ALARM,
    WEEKDAY,
    YEAR,
    A,
    B,
    C,
    D,
    Rtc,
    memory_bytes_in_cmos,
    next_match,
)
from ostler.testing import FakeIrqLine, VirtualClock

SECOND = 1_000_000_000
MOMENT = datetime(2031, 12, 24, 21, 59, 58, tzinfo=UTC)  # a Wednesday


class Chip:
    def __init__(self) -> None:
        self.irq = FakeIrqLine()
        self.clock = VirtualClock(int(MOMENT.timestamp()) * SECOND)
        self.device = Rtc(self.irq, self.clock, self.clock, self.clock, {0x15: 0x80})

    def get(self, register: int) -> int:
        self.device.write(0, 1, register)
        return self.device.read(1, 1)

    def put(self, register: int, value: int) -> None:
        self.device.write(0, 1, register)
        self.device.write(1, 1, value)

    def date(self) -> list[int]:
        return [self.get(r) for r in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS)]


@pytest.fixture
def chip() -> Chip:
    return Chip()


def test_rtc_default_mode_shows_host_time_in_bcd(chip: Chip) -> None:
    assert chip.date() == [0x20, 0x31, 0x12, 0x24, 0x21, 0x59, 0x58]
    assert chip.get(WEEKDAY) == 4
    assert chip.get(D) == 0x80


def test_rtc_binary_12_hour_mode_marks_pm(chip: Chip) -> None:
    chip.put(B, B_BINARY)
    assert chip.date() == [20, 31, 12, 24, 9 | 0x80, 59, 58]


def test_rtc_time_passes_with_the_clock(chip: Chip) -> None:
    chip.clock.advance(3 * SECOND)
    assert chip.date()[-3:] == [0x22, 0x00, 0x01]


def test_rtc_set_time_is_kept_and_goes_on(chip: Chip) -> None:
    chip.put(B, B_SET | B_24_HOURS)
    for register, value in ((CENTURY, 0x19), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31)):
        chip.put(register, value)
    for register, value in ((HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x59)):
        chip.put(register, value)
    chip.clock.advance(5 * SECOND)
    assert chip.date() == [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]
    chip.put(B, B_24_HOURS)
    chip.clock.advance(SECOND)
    assert chip.date() == [0x20, 0x00, 0x01, 0x01, 0, 0, 0]


def test_rtc_invalid_date_leaves_the_clock_running(chip: Chip) -> None:
    chip.put(MONTH, 0x77)
    chip.clock.advance(SECOND)
    assert chip.get(MONTH) == 0x12


def test_rtc_update_in_progress_shows_just_before_the_second(chip: Chip) -> None:
    assert not chip.get(A) & A_UPDATE_IN_PROGRESS
    chip.clock.advance(SECOND - 100_000)
    assert chip.get(A) & A_UPDATE_IN_PROGRESS
    chip.clock.advance(100_000)
    assert not chip.get(A) & A_UPDATE_IN_PROGRESS


def test_rtc_update_ended_interrupts_each_second_until_read(chip: Chip) -> None:
    chip.put(B, B_24_HOURS | B_UPDATE_ENDED)
    chip.clock.advance(SECOND)
    assert chip.irq.level
    assert chip.get(C) == C_INTERRUPT | C_UPDATE_ENDED | C_PERIODIC
    assert not chip.irq.level
    chip.clock.advance(SECOND)
    assert chip.irq.rises == 2


def test_rtc_periodic_interrupt_comes_at_its_rate(chip: Chip) -> None:
    chip.put(A, 0x2D)  # 8 Hz
    chip.put(B, B_24_HOURS | B_PERIODIC)
    for _ in range(8):
        chip.clock.advance(SECOND // 8)
        chip.get(C)
    assert chip.irq.rises == 8


def test_rtc_alarm_fires_at_its_time(chip: Chip) -> None:
    for register, value in ((HOURS_ALARM, 0x22), (MINUTES_ALARM, 0x00), (SECONDS_ALARM, ALARM_ANY)):
        chip.put(register, value)
    chip.put(B, B_24_HOURS | B_ALARM)
    chip.clock.advance(SECOND)
    assert not chip.irq.level
    chip.clock.advance(SECOND)
    assert chip.irq.level
    assert chip.get(C) & C_ALARM


def test_rtc_flags_are_set_without_enabled_interrupts(chip: Chip) -> None:
    chip.get(C)
    chip.clock.advance(SECOND)
    assert chip.get(C) == C_UPDATE_ENDED | C_PERIODIC
    assert chip.irq.rises == 0


def test_rtc_cmos_keeps_bytes_and_has_the_given_ones(chip: Chip) -> None:
    chip.put(0x40, 0x5A)
    assert chip.get(0x40) == 0x5A
    assert chip.get(0x15) == 0x80


def test_rtc_memory_bytes_describe_both_sides_of_4g() -> None:
    cmos = memory_bytes_in_cmos(3 << 30, 5 << 30)
    assert cmos[0x34] | cmos[0x35] << 8 == (3 << 30) - (16 << 20) >> 16
    assert cmos[0x5B] | cmos[0x5C] << 8 | cmos[0x5D] << 16 == 5 << 30 >> 16
    assert cmos[0x17] | cmos[0x18] << 8 == 0xFFFF


@pytest.mark.parametrize(
    ("start", "time", "expected"),
    [
        (100, (None, None, None), 100),
        (100, (None, None, 41), 101),
        (100, (None, 1, None), 100),
        (100, (None, 0, 5), 3605),
        (100, (0, 0, 5), 86_405),
        (100, (1, None, None), 3600),
        (100, (None, 2, None), 120),
        (100, (25, None, None), None),
    ],
)
def test_rtc_next_match_is_the_first(
    start: int, time: tuple[int | None, int | None, int | None], expected: int | None
) -> None:
    found = next_match(start, *time)
    assert found == (None if expected is None else expected * SECOND)

"""MC146818 real-time clock with CMOS RAM at ports 0x70 and 0x71, as wired on a PC.

Spec: Motorola MC146818A; the PC's use of the RAM as in the IBM AT Technical Reference, with the
century at 0x32 and memory sizes where SeaBIOS and QEMU put them. The time is UTC: the host's, plus
whatever the guest has set.

All timing comes from one number, the clock's own time in nanoseconds: seconds, periodic interrupts
and the update-in-progress window are functions of it, evaluated when the guest looks or when an
enabled interrupt is due.

Not modelled: the square-wave output, daylight saving, battery failure, a time that is no date
(the clock then goes on from the time before), NMI masking by bit 7 of the index port.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from ostler.devices.byte_registers import OPEN_BUS, ByteRegisters
from ostler.devices.device import Clock, IrqLine
from ostler.devices.timer import TimerService, WallClock
from ostler.errors import StateError
from ostler.state import State

PORTS = 2
INDEX, DATA = 0, 1
CMOS_BYTES = 128

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR = 6, 7, 8, 9
CENTURY = 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)
A, B, C, D = 0x0A, 0x0B, 0x0C, 0x0D

A_UPDATE_IN_PROGRESS, A_DIVIDER, A_RATE = 0x80, 0x70, 0x0F
DIVIDER_RESET = 0x60  # both of these bits set hold the divider chain in reset
A_DEFAULT = 0x26  # 32,768 Hz crystal, periodic rate 1,024 Hz
B_SET, B_PERIODIC, B_ALARM, B_UPDATE_ENDED = 0x80, 0x40, 0x20, 0x10
B_BINARY, B_24_HOURS = 0x04, 0x02
C_INTERRUPT, C_PERIODIC, C_ALARM, C_UPDATE_ENDED = 0x80, 0x40, 0x20, 0x10
D_VALID = 0x80
HOURS_PM = 0x80
ALARM_ANY = 0xC0  # an alarm byte with both top bits set matches every value

BASE_MEMORY, EXTENDED_MEMORY, EXTENDED_MEMORY_2 = 0x15, 0x17, 0x30
MEMORY_ABOVE_16M, MEMORY_ABOVE_4G = 0x34, 0x5B

SECOND_NS = 1_000_000_000
HALF_SECOND_NS = SECOND_NS // 2
DAY_SECONDS = 86_400
CRYSTAL_HZ = 32_768
UPDATE_WINDOW_NS = 244_141  # UIP rises eight crystal ticks before the update


@dataclass(slots=True)
class RtcState(State):
    """The RAM, the clock's distance from the host's, and how far events have been accounted for."""

    index: int = 0
    ram: bytearray = field(default_factory=lambda: bytearray(CMOS_BYTES))
    offset_ns: int = 0
    events_until_ns: int = 0

    def validate(self) -> None:
        if not 0 <= self.index < CMOS_BYTES or len(self.ram) != CMOS_BYTES:
            raise StateError("rtc: index or RAM out of range")
        # Both bounds are far from any date a clock with two-digit centuries can show.
        if abs(self.offset_ns) > 1 << 70 or abs(self.events_until_ns) > 1 << 70:
            raise StateError("rtc: a time is out of range")


def memory_bytes_in_cmos(low_bytes: int, high_bytes: int) -> dict[int, int]:
    """CMOS bytes by address that tell firmware of RAM below (`low`) and above 4 GiB (`high`)."""
    extended_kib = min(max(low_bytes - (1 << 20), 0) >> 10, 0xFFFF)
    above_16m = min(max(low_bytes - (16 << 20), 0) >> 16, 0xFFFF)
    above_4g = min(high_bytes >> 16, 0xFFFFFF)
    fields = (
        (BASE_MEMORY, 640, 2),
        (EXTENDED_MEMORY, extended_kib, 2),
        (EXTENDED_MEMORY_2, extended_kib, 2),
        (MEMORY_ABOVE_16M, above_16m, 2),
        (MEMORY_ABOVE_4G, above_4g, 3),
    )
    return {at + i: value >> (8 * i) & 0xFF for at, value, width in fields for i in range(width)}


class Rtc(ByteRegisters[RtcState]):
    """The clock. `cmos` gives RAM bytes, by address, that are there after every reset."""

    name, State = "rtc", RtcState

    def __init__(
        self,
        irq: IrqLine,
        clock: Clock,
        timers: TimerService,
        wall: WallClock,
        cmos: dict[int, int] | None = None,
    ) -> None:
        super().__init__()
        self._irq, self._clock, self._wall = irq, clock, wall
        self._cmos = dict(cmos or {})
        self._timer = timers.timer(self._on_timer)
        self.reset()

    def reset(self) -> None:
        state = RtcState(events_until_ns=self._wall.utc_ns())
        state.ram[A], state.ram[B], state.ram[D] = A_DEFAULT, B_24_HOURS, D_VALID
        for address, value in self._cmos.items():
            state.ram[address] = value
        self.replace(state)

    def replace(self, state: RtcState) -> None:
        with self.lock:
            self.state = state
            self._update_interrupt()

    def read_byte(self, offset: int) -> int:
        if offset != DATA:
            return OPEN_BUS  # the index register is write-only
        index = self.state.index
        if index in TIME_REGISTERS:
            self._latch_time()
        if index == A:
            return self._read_a()
        if index == C:
            return self._read_c()
        return self.state.ram[index]

    def write_byte(self, offset: int, value: int) -> None:
        if offset == INDEX:
            self.state.index = value & (CMOS_BYTES - 1)
        elif offset == DATA:
            self._write_register(self.state.index, value)

    def _write_register(self, index: int, value: int) -> None:
        if index in (C, D):
            return
        if index in TIME_REGISTERS:
            self._latch_time()
            self.state.ram[index] = value
            self._set_time(self._now_ns() % SECOND_NS)
        elif index in (A, B):
            self._write_control(index, value)
        else:
            self.state.ram[index] = value
        self._update_interrupt()

    # -- time -------------------------------------------------------------------------------

    def _now_ns(self) -> int:
        return self._wall.utc_ns() + self.state.offset_ns

    def _divider_reset(self) -> bool:
        return self.state.ram[A] & DIVIDER_RESET == DIVIDER_RESET

    def _stopped(self) -> bool:
        return bool(self.state.ram[B] & B_SET) or self._divider_reset()

    def _write_control(self, index: int, value: int) -> None:
        self._latch_time()
        was_stopped, was_reset = self._stopped(), self._divider_reset()
        self._collect_events()
        if index == A:
            value &= ~A_UPDATE_IN_PROGRESS
        elif value & B_SET:
            value &= ~B_UPDATE_ENDED
        self.state.ram[index] = value
        if was_stopped and not self._stopped():
            # Out of reset, the divider chain needs half a second to the first update.
            self._set_time(HALF_SECOND_NS if was_reset else 0)

    def _encode(self, value: int) -> int:
        return value if self.state.ram[B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, byte: int) -> int:
        return byte if self.state.ram[B] & B_BINARY else (byte >> 4) * 10 + (byte & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self.state.ram[B] & B_24_HOURS:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (HOURS_PM if hour >= 12 else 0)

    def _decode_hour(self, byte: int) -> int:
        if self.state.ram[B] & B_24_HOURS:
            return self._decode(byte)
        return self._decode(byte & ~HOURS_PM) % 12 + (12 if byte & HOURS_PM else 0)

    def _latch_time(self) -> None:
        """Bring the time registers up to date, unless updates are stopped."""
        if self._stopped():
            return
        ram, now = self.state.ram, datetime_of(self._now_ns())
        ram[SECONDS], ram[MINUTES] = self._encode(now.second), self._encode(now.minute)
        ram[HOURS] = self._encode_hour(now.hour)
        ram[WEEKDAY] = self._encode(now.isoweekday() % 7 + 1)
        ram[DAY], ram[MONTH] = self._encode(now.day), self._encode(now.month)
        ram[YEAR], ram[CENTURY] = self._encode(now.year % 100), self._encode(now.year // 100)

    def _set_time(self, fraction_ns: int) -> None:
        """Go on from the date in the registers, `fraction_ns` into its second."""
        if self._stopped():
            return
        ram = self.state.ram
        year = self._decode(ram[CENTURY]) * 100 + self._decode(ram[YEAR])
        day = (self._decode(ram[MONTH]), self._decode(ram[DAY]))
        time = (
            self._decode_hour(ram[HOURS]),
            self._decode(ram[MINUTES]),
            self._decode(ram[SECONDS]),
        )
        try:
            date = datetime(year, *day, *time, tzinfo=UTC)
        except ValueError:
            return
        now_ns = (date - EPOCH).days * DAY_SECONDS * SECOND_NS + (date - EPOCH).seconds * SECOND_NS
        self.state.offset_ns = now_ns + fraction_ns - self._wall.utc_ns()
        self.state.events_until_ns = self._now_ns()

    def _read_a(self) -> int:
        until_update = SECOND_NS - self._now_ns() % SECOND_NS
        updating = not self._stopped() and until_update <= UPDATE_WINDOW_NS
        return self.state.ram[A] | (A_UPDATE_IN_PROGRESS if updating else 0)

    # -- interrupts -------------------------------------------------------------------------

    def _read_c(self) -> int:
        self._collect_events()
        value = self.state.ram[C]
        self.state.ram[C] = 0
        self._update_interrupt()
        return value

    def _next_second(self, after_ns: int) -> int | None:
        return None if self._stopped() else (after_ns // SECOND_NS + 1) * SECOND_NS

    def _next_periodic(self, after_ns: int) -> int | None:
        rate = self.state.ram[A] & A_RATE
        if rate == 0 or self._divider_reset():
            return None
        # Rates 1 and 2 repeat 8 and 9: the first two divider taps are not brought out.
        ticks = 1 << (rate + 6 if rate < 3 else rate - 1)
        count = after_ns * CRYSTAL_HZ // (ticks * SECOND_NS) + 1
        return -(-count * ticks * SECOND_NS // CRYSTAL_HZ)

    def _next_alarm(self, after_ns: int) -> int | None:
        if self._stopped():
            return None
        ram = self.state.ram
        second = _alarm_value(ram[SECONDS_ALARM], self._decode(ram[SECONDS_ALARM]))
        minute = _alarm_value(ram[MINUTES_ALARM], self._decode(ram[MINUTES_ALARM]))
        hour = _alarm_value(ram[HOURS_ALARM], self._decode_hour(ram[HOURS_ALARM]))
        return next_match(after_ns // SECOND_NS + 1, hour, minute, second)

    def _sources(self) -> tuple[tuple[int, int | None], ...]:
        """Each flag of register C with the first time it is due that is not accounted for."""
        since = self.state.events_until_ns
        return (
            (C_PERIODIC, self._next_periodic(since)),
            (C_ALARM, self._next_alarm(since)),
            (C_UPDATE_ENDED, self._next_second(since)),
        )

    def _collect_events(self) -> None:
        now = self._now_ns()
        for flag, due_ns in self._sources():
            if due_ns is not None and due_ns <= now:
                self.state.ram[C] |= flag
        self.state.events_until_ns = now
        ram = self.state.ram
        if ram[C] & ram[B] & (C_PERIODIC | C_ALARM | C_UPDATE_ENDED):
            ram[C] |= C_INTERRUPT

    def _update_interrupt(self) -> None:
        """Drive the line, and set the timer to the next event the guest wants to hear of."""
        self._collect_events()
        ram = self.state.ram
        self._irq.set_level(bool(ram[C] & C_INTERRUPT))
        wanted = [due for flag, due in self._sources() if due is not None and ram[B] & flag]
        if wanted and not ram[C] & C_INTERRUPT:
            wait_ns = min(wanted) - self._now_ns()
            self._timer.arm(self._clock.now_ns() + max(wait_ns, 0))
        else:
            self._timer.cancel()

    def _on_timer(self) -> None:
        with self.lock:
            self._update_interrupt()


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEARS_9999_S = 253_402_300_800


def datetime_of(utc_ns: int) -> datetime:
    """The second `utc_ns` lies in; what is outside years 1970 to 9999 wraps around."""
    return datetime.fromtimestamp(utc_ns // SECOND_NS % YEARS_9999_S, tz=UTC)


def _alarm_value(byte: int, decoded: int) -> int | None:
    return None if byte & ALARM_ANY == ALARM_ANY else decoded


def next_match(
    start_s: int, hour: int | None, minute: int | None, second: int | None
) -> int | None:
    """Nanoseconds of the first second from `start_s` on that shows this time; `None` is any.

    `None` when no second of a day does, because a field is out of range.
    """
    if (hour or 0) > 23 or (minute or 0) > 59 or (second or 0) > 59:
        return None
    moment = start_s
    if second is not None:
        moment += (second - moment) % 60
    # A later minute or hour begins anew: what is below it starts at its wanted or lowest value.
    if minute is not None and moment // 60 % 60 != minute:
        minutes = moment // 60
        moment = (minutes + (minute - minutes) % 60) * 60 + (second or 0)
    if hour is not None and moment // 3600 % 24 != hour:
        hours = moment // 3600
        moment = (hours + (hour - hours) % 24) * 3600 + (minute or 0) * 60 + (second or 0)
    return moment * SECOND_NS

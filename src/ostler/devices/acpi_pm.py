"""ACPI power management: PM1a event and control blocks and the power management timer.

Spec: ACPI 6.5, sections 4.8.3.1 (PM1 event), 4.8.3.2 (PM1 control) and 4.8.3.3 (timer). ACPI mode
is always on: there is no SMI command port, and SCI_EN reads as one. A press of the power button
sets PWRBTN_STS and, where enabled, raises the SCI; SLP_EN with the S5 sleep type switches off.

Not modelled: sleep states but S5, the bus master and RTC status bits, the firmware side of the
global lock (GBL_RLS does nothing), general purpose events.
"""

from __future__ import annotations

from dataclasses import dataclass

from ostler.devices.byte_registers import ByteRegisters
from ostler.devices.device import Clock, IrqLine
from ostler.devices.requests import MachineRequests
from ostler.devices.timer import TimerService
from ostler.errors import StateError
from ostler.state import State

PORTS = 12
STATUS, ENABLE, CONTROL, TIMER = 0, 2, 4, 8

TIMER_STS, GLOBAL_STS, POWER_BUTTON_STS = 1 << 0, 1 << 5, 1 << 8
SLEEP_BUTTON_STS, RTC_STS, WAKE_STS = 1 << 9, 1 << 10, 1 << 15
STATUS_BITS = TIMER_STS | GLOBAL_STS | POWER_BUTTON_STS | SLEEP_BUTTON_STS | RTC_STS | WAKE_STS
ENABLE_BITS = TIMER_STS | GLOBAL_STS | POWER_BUTTON_STS | SLEEP_BUTTON_STS | RTC_STS

SCI_EN, SLEEP_TYPE_SHIFT, SLEEP_EN = 1 << 0, 10, 1 << 13
CONTROL_KEPT = 0x1C02  # SLP_TYP and BM_RLD; SCI_EN is wired to one, GBL_RLS and SLP_EN read as zero
S5_SLEEP_TYPE = 5  # what the DSDT's _S5 package says

TIMER_HZ = 3_579_545
SECOND_NS = 1_000_000_000
TIMER_BITS = 32
TIMER_MASK = (1 << TIMER_BITS) - 1
# TMR_STS is set when the timer's highest bit changes (section 4.8.3.3).
HALF_PERIOD_TICKS = 1 << (TIMER_BITS - 1)


@dataclass(slots=True)
class AcpiPmState(State):
    """The registers; the timer is the VM's clock, of which `half_periods` have been noticed."""

    status: int = 0
    enable: int = 0
    control: int = 0
    half_periods: int = 0

    def validate(self) -> None:
        if self.status & ~STATUS_BITS or self.enable & ~ENABLE_BITS:
            raise StateError("acpi-pm: status or enable has unknown bits")
        if self.control & ~CONTROL_KEPT:
            raise StateError("acpi-pm: control has unknown bits")
        if not 0 <= self.half_periods < 1 << 64:
            raise StateError("acpi-pm: half_periods is out of range")


class AcpiPm(ByteRegisters[AcpiPmState]):
    """The three blocks, next to each other."""

    name, State = "acpi-pm", AcpiPmState

    def __init__(
        self, sci: IrqLine, clock: Clock, timers: TimerService, requests: MachineRequests
    ) -> None:
        super().__init__()
        self._sci, self._clock, self._requests = sci, clock, requests
        self._timer = timers.timer(self._on_timer)
        self.reset()

    def reset(self) -> None:
        self.replace(AcpiPmState(half_periods=self._ticks() // HALF_PERIOD_TICKS))

    def replace(self, state: AcpiPmState) -> None:
        with self.lock:
            self.state = state
            self._update_sci()

    def press_power_button(self) -> None:
        """Ask the guest to shut down, as a short press of the button does."""
        with self.lock:
            self.state.status |= POWER_BUTTON_STS
            self._update_sci()

    @property
    def power_button_enabled(self) -> bool:
        """Whether the guest listens to the power button."""
        return bool(self.state.enable & POWER_BUTTON_STS)

    def read(self, offset: int, size: int) -> int:
        # One image for all bytes of an access: the timer must not tick in between.
        with self.lock:
            return self._image() >> (8 * offset) & (1 << 8 * size) - 1

    def read_byte(self, offset: int) -> int:
        return self._image() >> (8 * offset) & 0xFF

    def write_byte(self, offset: int, value: int) -> None:
        register, shift = offset & ~1, 8 * (offset & 1)
        value <<= shift
        state = self.state
        if register == STATUS:
            self._notice_timer()
            state.status &= ~value
        elif register == ENABLE:
            state.enable = (state.enable & ~(0xFF << shift) | value) & ENABLE_BITS
        elif register == CONTROL:
            state.control = (state.control & ~(0xFF << shift) | value) & CONTROL_KEPT
            if value & SLEEP_EN and state.control >> SLEEP_TYPE_SHIFT == S5_SLEEP_TYPE:
                self._requests.power_off()
        self._update_sci()

    def _ticks(self) -> int:
        return self._clock.now_ns() * TIMER_HZ // SECOND_NS

    def _image(self) -> int:
        """The twelve bytes of registers as one little-endian number."""
        self._notice_timer()
        state = self.state
        image = state.status | state.enable << 8 * ENABLE
        image |= (state.control | SCI_EN) << 8 * CONTROL
        return image | (self._ticks() & TIMER_MASK) << 8 * TIMER

    def _notice_timer(self) -> None:
        half_periods = self._ticks() // HALF_PERIOD_TICKS
        if half_periods != self.state.half_periods:
            self.state.half_periods = half_periods
            self.state.status |= TIMER_STS

    def _update_sci(self) -> None:
        self._notice_timer()
        state = self.state
        self._sci.set_level(bool(state.status & state.enable))
        if state.enable & TIMER_STS:
            next_ticks = (state.half_periods + 1) * HALF_PERIOD_TICKS
            self._timer.arm(-(-next_ticks * SECOND_NS // TIMER_HZ))
        else:
            self._timer.cancel()

    def _on_timer(self) -> None:
        with self.lock:
            self._update_sci()

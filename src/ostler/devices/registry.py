"""Every kind of device there is, in one list.

What stands here is conformance-tested by `ostler.testing.check_device` without further ado.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ostler.devices import acpi_pm, debug_exit, fw_cfg, i8042, pvpanic, reset_control, rtc, serial
from ostler.devices.device import Clock, Device, GuestMemory, IrqLine
from ostler.devices.requests import MachineRequests
from ostler.devices.timer import TimerService, WallClock


class Surroundings(Protocol):
    """What a device is wired to: a board, or `ostler.testing.FakeMachine`."""

    @property
    def clock(self) -> Clock: ...
    @property
    def timers(self) -> TimerService: ...
    @property
    def wall(self) -> WallClock: ...
    @property
    def memory(self) -> GuestMemory: ...
    @property
    def requests(self) -> MachineRequests: ...
    def irq_line(self, gsi: int) -> IrqLine:
        """The interrupt input with the global system interrupt number `gsi`."""


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """A kind of device: its class, the bytes its range spans, and how to wire one up alone."""

    device: type[Device[Any]]
    span: int
    wire: Callable[[Surroundings], Device[Any]]


KINDS: tuple[DeviceKind, ...] = (
    DeviceKind(
        serial.Serial16550,
        serial.PORTS,
        lambda to: serial.Serial16550(to.irq_line(4), to.clock, to.timers),
    ),
    DeviceKind(
        rtc.Rtc,
        rtc.PORTS,
        lambda to: rtc.Rtc(to.irq_line(8), to.clock, to.timers, to.wall),
    ),
    DeviceKind(
        i8042.I8042,
        i8042.PORTS,
        lambda to: i8042.I8042(to.irq_line(1), to.irq_line(12), to.requests),
    ),
    DeviceKind(
        acpi_pm.AcpiPm,
        acpi_pm.PORTS,
        lambda to: acpi_pm.AcpiPm(to.irq_line(9), to.clock, to.timers, to.requests),
    ),
    DeviceKind(
        reset_control.ResetControl,
        reset_control.PORTS,
        lambda to: reset_control.ResetControl(to.requests),
    ),
    DeviceKind(
        pvpanic.Pvpanic,
        pvpanic.PORTS,
        lambda to: pvpanic.Pvpanic(to.requests),
    ),
    DeviceKind(
        debug_exit.DebugExit,
        debug_exit.PORTS,
        lambda to: debug_exit.DebugExit(to.requests),
    ),
    DeviceKind(
        fw_cfg.FwCfg,
        fw_cfg.PORTS,
        lambda to: fw_cfg.FwCfg(to.memory, fw_cfg.items(0, 1, {})),
    ),
)

"""What every device has to do, whatever it is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ostler.devices.device import Device
from ostler.errors import StateError
from ostler.testing.machine import FakeMachine

ACCESS_SIZES = (1, 2, 4, 8)
ACCESSES = 2_000
HOSTILE_VALUES: tuple[Any, ...] = (None, "x", -1, 1 << 80, 1.5, [], {}, b"", b"\xff" * 65_536)


def check_device(
    factory: Callable[[FakeMachine], Device[Any]], span: int, seed: int = 2026
) -> None:
    """Hold a device to the contract of `ostler.devices.device`; `AssertionError` says what is off.

    `factory` builds a fresh device wired to the machine it is given; `span` is its range in bytes.
    """
    check_accesses_never_raise(factory, span, seed)
    check_state_survives_save_and_load(factory, span, seed)
    check_reset_equals_fresh(factory, span, seed)
    check_hostile_state_is_refused(factory, span, seed)


def exercise(device: Device[Any], span: int, seed: int) -> None:
    """Random reads and writes at every size and offset of the range."""
    chance = random.Random(seed)
    for _ in range(ACCESSES):
        offset, size = chance.randrange(span), chance.choice(ACCESS_SIZES)
        if chance.random() < 0.5:
            value = device.read(offset, size)
            assert 0 <= value < 1 << 8 * size, f"{device.name}: read gave {value:#x}"
        else:
            # Bytes with few bits set reach enables and strobes that random ones rarely hit alone.
            value = chance.choice((chance.getrandbits(8 * size), 1 << chance.randrange(8 * size)))
            device.write(offset, size, value)


def check_accesses_never_raise(
    factory: Callable[[FakeMachine], Device[Any]], span: int, seed: int
) -> None:
    """A guest mistake is answered, never raised; a read fits its size; saving changes nothing."""
    machine = FakeMachine()
    device = factory(machine)
    for round in range(5):
        exercise(device, span, seed + round)
        machine.clock.advance(1_500_000_000)
        assert device.save() == device.save(), f"{device.name}: saving changes the state"


def check_state_survives_save_and_load(
    factory: Callable[[FakeMachine], Device[Any]], span: int, seed: int
) -> None:
    """What was saved is what is saved after a load; accesses change what is saved."""
    device = factory(FakeMachine())
    fresh = device.save()
    exercise(device, span, seed)
    used = device.save()
    if fields(device.state):
        assert used != fresh, f"{device.name}: {ACCESSES} accesses left no trace in the state"
    other = factory(FakeMachine())
    other.load(used)
    assert other.save() == used, f"{device.name}: state differs after save and load"
    other.load(fresh)
    assert other.save() == fresh, f"{device.name}: a load leaves something of the state before"


def check_reset_equals_fresh(
    factory: Callable[[FakeMachine], Device[Any]], span: int, seed: int
) -> None:
    """A reset device is as a new one."""
    device = factory(FakeMachine())
    exercise(device, span, seed)
    device.reset()
    assert device.save() == factory(FakeMachine()).save(), f"{device.name}: reset is not fresh"


def check_hostile_state_is_refused(
    factory: Callable[[FakeMachine], Device[Any]], span: int, seed: int
) -> None:
    """A damaged state is a `StateError` that changes nothing, or one the device can live with."""
    device = factory(FakeMachine())
    exercise(device, span, seed)
    good = device.save()
    must_fail = [{}, {**good, "version": -1}, {**good, "no_such_field": 0}]
    must_fail += [{k: v for k, v in good.items() if k != gone} for gone in good]
    for bad in must_fail:
        assert not _load(device, bad), f"{device.name}: took {sorted(bad)}"
        assert device.save() == good, f"{device.name}: a refused load changed the state"
    for name in good:
        for value in HOSTILE_VALUES:
            if _load(device, {**good, name: value}):
                exercise(device, span, seed)
                device.load(good)
            assert device.save() == good, f"{device.name}: a refused load changed the state"


def _load(device: Device[Any], data: dict[str, Any]) -> bool:
    try:
        device.load(data)
    except StateError:
        return False
    return True

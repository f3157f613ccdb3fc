"""virtio-input: what the driver is told of the device, and what keys and moves become."""

from __future__ import annotations

import struct

import pytest

from ostler.devices.virtio.input import (
    ABS_INFO,
    EV_ABS,
    EV_BITS,
    EV_KEY,
    EV_LED,
    ID_DEVIDS,
    ID_NAME,
    TABLET_MAX,
    VirtioInput,
    VirtioKeyboard,
    VirtioTablet,
)
from ostler.testing.pci import FakeWorkers


def asked(device: VirtioInput, select: int, subselect: int = 0) -> bytes:
    """What the configuration space answers, by its own count of bytes."""
    device.write(0, 1, select)
    device.write(1, 1, subselect)
    config = device.config()
    assert (len(config), config[0], config[1]) == (136, select, subselect)
    return config[8 : 8 + config[2]]


def messages(device: VirtioInput) -> list[tuple[int, ...]]:
    feed: list[bytes] = device._events.messages  # type: ignore[attr-defined]  # the fake's
    return [struct.unpack("<HHI", message) for message in feed]


@pytest.mark.parametrize("kind", [VirtioKeyboard, VirtioTablet])
def test_identity_is_told_and_what_is_not_there_has_no_bytes(kind: type[VirtioInput]) -> None:
    device = kind(FakeWorkers())
    assert asked(device, ID_NAME).startswith(b"Ostler virtio")
    assert len(asked(device, ID_DEVIDS)) == 8
    assert asked(device, 0) == asked(device, 0xFF, 0xFF) == asked(device, EV_BITS, 0x02) == b""


def test_keyboard_offers_its_keys_and_a_chord_is_pressed_and_let_go() -> None:
    keyboard = VirtioKeyboard(FakeWorkers())
    keys = int.from_bytes(asked(keyboard, EV_BITS, EV_KEY), "little")
    assert keys == (1 << 249) - 2
    keyboard.press(29, 46)
    events = [(kind, code, value) for kind, code, value in messages(keyboard) if kind == EV_KEY]
    assert events == [(1, 29, 1), (1, 46, 1), (1, 46, 0), (1, 29, 0)]
    assert messages(keyboard)[1::2] == [(0, 0, 0)] * 4
    keyboard.reset()
    assert messages(keyboard) == []


def test_tablet_says_its_range_and_moves_stay_in_it() -> None:
    tablet = VirtioTablet(FakeWorkers())
    assert struct.unpack("<5I", asked(tablet, ABS_INFO, 1))[:2] == (0, TABLET_MAX)
    assert asked(tablet, ABS_INFO, 5) == b""
    tablet.move(0.5, 7)
    assert messages(tablet)[:2] == [(EV_ABS, 0, 0x4000), (EV_ABS, 1, TABLET_MAX)]


def test_lamps_follow_the_driver_and_nonsense_is_ignored() -> None:
    keyboard = VirtioKeyboard(FakeWorkers())
    for event in ((EV_LED, 1, 1), (EV_LED, 900, 1), (EV_KEY, 1, 1)):
        assert keyboard._on_status(struct.pack("<HHI", *event), 0) == b""
    assert keyboard._on_status(b"x", 0) == b""
    assert keyboard.lamps == {1: True}

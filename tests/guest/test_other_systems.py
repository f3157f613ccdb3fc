"""Guests that are not Linux: memtest86+ and a multiboot game."""

from __future__ import annotations

import re
import time

import pytest
from stock import END_S, SLOWER, Boot

from guests.fetch import invaders, memtest

pytestmark = pytest.mark.guest

VGA_TEXT_GPA = 0xB8000
COLUMNS, ROWS = 80, 25


def test_memtest_passes_its_first_tests(boot: Boot) -> None:
    vm = boot(kernel=memtest(), append="console=ttyS0,115200", memory="24M")
    vm.serial.wait_for("Memtest86+", timeout=60)
    vm.serial.wait_for(re.compile(r"#(?:[6-9]|10) +\["), timeout=300 * SLOWER)
    errors = re.findall(r"Errors: (\d+)", vm.serial.history)
    assert errors
    assert set(errors) == {"0"}


def test_invaders_draws_its_fleet_on_the_text_screen(boot: Boot) -> None:
    vm = boot(kernel=invaders(), memory="64M")
    deadline = time.monotonic() + END_S
    while not (text := _screen(vm.memory.read(VGA_TEXT_GPA, COLUMNS * ROWS * 2))).strip():
        assert time.monotonic() < deadline, "the screen stayed empty"
        time.sleep(0.2)
    assert text.count("-*-") > 8, text


def _screen(cells: bytes) -> str:
    """The characters of a text screen: each cell is a character and its colour."""
    return cells[::2].replace(b"\0", b" ").decode("cp437")

"""What only ring 0 can do: faults, paging, protection, debug registers, interrupts.

The guest (`guests/system/`) checks the CPU against the manual from the inside, without an operating
system, and prints what differs.
"""

from __future__ import annotations

import pytest
from stock import IN_LAB, Boot

from guests.native import system

pytestmark = [
    pytest.mark.guest,
    # With no hypervisor, too, it answers a stack load from a non-canonical address by #GP.
    pytest.mark.skipif(
        IN_LAB, reason="the lab's processor is QEMU's, which departs from the manual"
    ),
]

CHECKS_AT_LEAST = 140


def test_system_mode_behaves_as_the_manual_says(boot: Boot) -> None:
    vm = boot(kernel=system(), devices=["debug-exit,iobase=0xf4"], memory="64M")
    outcome = vm.wait(timeout=60)
    said = vm.serial.history
    assert "FAILED" not in said
    assert outcome.exit_code == 1, said
    count = int(said.rpartition("checks ")[2].split()[0], 16)
    assert count >= CHECKS_AT_LEAST

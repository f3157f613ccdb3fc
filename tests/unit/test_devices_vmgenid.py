"""The generation identifier."""

from __future__ import annotations

import pytest

from ostler.devices.vmgenid import ID_BYTES, Vmgenid
from ostler.errors import StateError
from ostler.testing import FakeMachine

GPA = 0x1000


def test_identifier_lies_in_memory_and_changes_with_an_interrupt_only_when_renewed() -> None:
    machine = FakeMachine()
    line = machine.irq_line(5)
    device = Vmgenid(machine.memory, GPA, line)
    first = machine.memory.read(GPA, ID_BYTES)
    assert first == device.state.generation != bytes(ID_BYTES)
    machine.memory.write(GPA, bytes(ID_BYTES))
    device.reset()
    assert machine.memory.read(GPA, ID_BYTES) == first
    assert line.rises == 0
    device.renew()
    assert machine.memory.read(GPA, ID_BYTES) not in (first, bytes(ID_BYTES))
    assert (line.rises, line.level) == (1, False)


def test_identifier_loaded_is_put_into_memory_and_a_wrong_one_refused() -> None:
    machine = FakeMachine()
    device = Vmgenid(machine.memory, GPA, machine.irq_line(5))
    saved = device.save()
    device.renew()
    device.load(saved)
    assert machine.memory.read(GPA, ID_BYTES) == saved["generation"]
    with pytest.raises(StateError, match="17 bytes"):
        device.load({**saved, "generation": bytes(17)})

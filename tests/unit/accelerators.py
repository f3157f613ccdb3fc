"""The accelerators that the tests of the engine run on."""

from __future__ import annotations

from collections.abc import Iterator

import engine_guest
import pytest

from ostler.engine import VirtualMachine
from ostler.errors import HostError


@pytest.fixture(params=["soft", "kvm"])
def accelerator(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have `engine_guest.machine` make machines of each accelerator that this host has."""
    name: str = request.param
    try:
        VirtualMachine(name)
    except HostError as error:
        engine_guest.lacks(f"cannot be used: {error}")
    before, engine_guest.accelerator = engine_guest.accelerator, name
    yield name
    engine_guest.accelerator = before


@pytest.fixture(params=["soft", "kvm", "kvm-split"])
def irqchip(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `accelerator`; `kvm` with its chips in the kernel, and with all but local APICs here."""
    name: str = request.param
    accelerator, _, split = name.partition("-")
    try:
        VirtualMachine(accelerator, split_irqchip=bool(split))
    except HostError as error:
        engine_guest.lacks(f"cannot be used: {error}")
    monkeypatch.setattr(engine_guest, "accelerator", accelerator)
    monkeypatch.setattr(engine_guest, "split_irqchip", bool(split))
    return name

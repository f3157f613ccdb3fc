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

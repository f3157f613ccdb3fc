"""A seeded portion of the device fuzzer; `python -m fuzz.devices` runs as many as wanted."""

from __future__ import annotations

import pytest

from fuzz.devices import TARGETS, run

EXECUTIONS = 3_000


@pytest.mark.parametrize("name", TARGETS)
def test_device_takes_whatever_a_driver_writes(name: str) -> None:
    assert list(run(name, EXECUTIONS, seed=0)) == []

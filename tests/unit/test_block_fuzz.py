"""A seeded portion of the image fuzzer; `python -m fuzz.images` runs as many as wanted."""

from __future__ import annotations

import pytest

from fuzz import nbd
from fuzz.images import TARGETS, run

EXECUTIONS = 3_000
# Each one that gets that far merges 4000 stripes of a key.
FEWER = {"luks": 200}


@pytest.mark.parametrize("name", TARGETS)
def test_mutant_gives_content_or_an_error_of_ours(name: str) -> None:
    assert [what for _, what in run(name, FEWER.get(name, EXECUTIONS), seed=11)] == []


@pytest.mark.parametrize("side", ["server", "client"])
def test_peer_of_nbd_that_hears_mutants_goes_on_or_ends_with_an_error_of_ours(side: str) -> None:
    assert [what for _, what in nbd.run(side, EXECUTIONS, seed=11)] == []

"""A pytest plugin (`-p ostler.testing.state_directory`): the host's registries are left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ostler.net.mac import STATE_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def state_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Machines that tests start claim their addresses in a registry of this run."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(STATE_VARIABLE, str(tmp_path_factory.mktemp("state")))
        yield

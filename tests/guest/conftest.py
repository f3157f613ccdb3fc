"""Fixtures of the stock guests, and what is kept when a test fails."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from stock import ACCELERATOR, BOOT_S, GREETING, IN_LAB, Boot, start_shell

import ostler
from guests.fetch import Kernel, kernel
from guests.images import ext4
from ostler.control.balloon import Balloon
from ostler.control.console import SerialConsole
from ostler.control.vsock import Vsock

# What waits for a guest, `timeout` seconds or by default.
WAITS = (
    (SerialConsole, "run"), (SerialConsole, "wait_for"), (ostler.VM, "wait"), (Vsock, "connect"),
    (Balloon, "statistics"),
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def patience() -> Iterator[None]:
    """In the lab nothing that waits for a guest gives up before its boot would be given up."""
    with pytest.MonkeyPatch.context() as patch:
        if IN_LAB:
            for owner, name in WAITS:
                patch.setattr(owner, name, _patient(getattr(owner, name)))
        yield


def _patient(wait: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(wait)

    @functools.wraps(wait)
    def patient(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        if bound.arguments["timeout"] is not None:
            bound.arguments["timeout"] = max(bound.arguments["timeout"], BOOT_S)
        return wait(*bound.args, **bound.kwargs)

    return patient


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An ext4 disk with the file `greeting`."""
    return ext4(tmp_path / "disk.img", {"greeting": GREETING})


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Boot]:
    """Starts machines with the given options and ends them with the test.

    What each printed is left in the test's directory, which pytest keeps for the last runs.
    """
    with ExitStack() as machines:

        def start(**options: Any) -> ostler.VM:
            options.setdefault("accelerator", ACCELERATOR)
            vm = machines.enter_context(ostler.VM(**options))
            log = tmp_path / "serial.log"
            machines.callback(lambda: log.write_text(vm.serial.history))
            return vm

        yield start


@pytest.fixture(scope="session")
def cloud() -> Kernel:
    """Debian's kernel for virtual machines."""
    return kernel("cloud")


@pytest.fixture(scope="session")
def full() -> Kernel:
    """Debian's kernel with the drivers of real hardware."""
    return kernel("full")


@pytest.fixture
def shell(boot: Boot, cloud: Kernel, disk: Path) -> ostler.VM:
    """The cloud kernel at its shell, with `disk` as /dev/vda."""
    return start_shell(boot, cloud, disks=[disk])

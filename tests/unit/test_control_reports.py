"""Where lines for the owner of a machine go, and when."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from small_kernel import SLEEP, write_kernel

import ostler
from ostler.control.reports import Reports, log
from ostler.errors import KernelError


def test_reports_are_kept_until_released_and_then_passed_on() -> None:
    reports, said = Reports(), list[str]()
    reports.add("first")
    assert said == []
    reports.release(said.append)
    reports.add("second")
    assert said == ["first", "second"]


def test_reports_without_a_listener_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    log("the guest has no network")
    assert caplog.record_tuples == [("ostler", logging.WARNING, "the guest has no network")]


def test_reports_without_a_listener_or_a_logger_print_nothing() -> None:
    script = "from ostler.control.reports import log; log('x')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_machine_that_is_more_than_its_host_says_so_when_it_runs(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "kernel", SLEEP)
    said: list[str] = []
    vm = ostler.VM(kernel, memory="32T,force=on", net="none", accelerator="soft")
    vm.on_report = said.append
    with vm:
        assert [line[:30] for line in said] == ["warning: --memory 32T is more t"[:30]]
        assert vm.accelerator.note is None


def test_machine_that_cannot_be_built_says_nothing_but_that(tmp_path: Path) -> None:
    said: list[str] = []
    vm = ostler.VM(tmp_path / "none", memory="32T,force=on")
    vm.on_report = said.append
    with pytest.raises(KernelError):
        vm.start()
    assert said == []

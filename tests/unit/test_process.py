"""A VM is a process: the tools of Linux see it, bind it, slow it, stop it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_kernel import PRINT_Y_FOR_EVER, SLEEP, SPIN, write_kernel

PROGRAM = "import sys; from ostler.cli import main; main()"
PATIENCE_S = 60
CGROUP = Path("/sys/fs/cgroup")


def tool(name: str) -> str:
    path = shutil.which(name)
    assert path is not None, f"{name} is missing: install util-linux and procps"
    return path


def said_by(*command: str | int) -> str:
    words = [tool(str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.005)


class Machine:
    """`ostler run` of a small kernel."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.pid = process, process.pid

    def title(self) -> str:
        return Path(f"/proc/{self.pid}/cmdline").read_bytes().rstrip(b"\0").decode()

    def threads(self) -> dict[str, int]:
        """TID by name; `stdin` and the like, too."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            found[(task / "comm").read_text().strip()] = int(task.name)
        return found

    def cpu_s(self) -> float:
        """CPU time of the first vCPU."""
        task = Path(f"/proc/{self.pid}/task/{self.threads()['vcpu0']}/schedstat")
        return int(task.read_text().split()[0]) / 1e9

    def share(self, over_s: float) -> float:
        """Of one CPU, what the first vCPU took meanwhile."""
        before, started = self.cpu_s(), time.monotonic()
        time.sleep(over_s)
        return (self.cpu_s() - before) / (time.monotonic() - started)


Start = Callable[..., Machine]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(code: bytes, *options: str, before: tuple[str, ...] = ()) -> Machine:
        kernel = write_kernel(tmp_path / "kernel", code)
        command = [
            *before, sys.executable, "-c", PROGRAM, "run", "--kernel", str(kernel),
            "--accel", "soft", "--name", "web1", "--serial", "none", *options,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        started.append(process)
        machine = Machine(process)
        until(lambda: machine.title() == "ostler: web1")
        return machine

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_ps_shows_the_machine_and_a_thread_for_each_cpu(start: Start) -> None:
    machine = start(SLEEP, "--cpus", "3")
    assert said_by("ps", "-o", "args=", "-p", machine.pid).strip() == "ostler: web1"
    names = said_by("ps", "-L", "-o", "comm=", "-p", machine.pid).split("\n")
    assert {"vcpu0", "vcpu1", "vcpu2", "control", "timers"} <= set(names)
    assert str(machine.pid) in said_by("pgrep", "-f", "^ostler: web1$").split()


def test_top_shows_which_cpu_is_busy(start: Start) -> None:
    machine = start(SPIN, "--cpus", "2")
    until(lambda: machine.cpu_s() > 0.05)
    shown = said_by("top", "-H", "-b", "-n", "1", "-p", machine.pid)
    assert "vcpu0" in shown
    assert "vcpu1" in shown


def test_taskset_binds_the_machine_or_one_of_its_cpus(start: Start) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    first, last = allowed[0], allowed[-1]
    machine = start(SPIN, "--cpus", "2", before=(tool("taskset"), "-c", str(first)))
    threads = machine.threads()
    assert all(os.sched_getaffinity(thread) == {first} for thread in threads.values())
    said_by("taskset", "-pc", last, threads["vcpu1"])
    assert os.sched_getaffinity(threads["vcpu1"]) == {last}
    assert os.sched_getaffinity(threads["vcpu0"]) == {first}


def test_nice_reaches_every_thread_and_renice_changes_one(start: Start) -> None:
    machine = start(SPIN, before=(tool("nice"), "-n", "5"))
    before = os.getpriority(os.PRIO_PROCESS, 0) + 5
    threads = machine.threads()
    nice = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads.values()}
    assert nice == {min(before, 19)}
    said_by("renice", "-n", "19", "-p", threads["vcpu0"])
    assert os.getpriority(os.PRIO_PROCESS, threads["vcpu0"]) == 19


def test_kill_stop_holds_the_guest_and_cont_lets_it_go_on(start: Start) -> None:
    machine = start(SPIN)

    def states() -> list[str]:
        return said_by("ps", "-L", "-o", "stat=", "-p", machine.pid).split()

    machine.process.send_signal(signal.SIGSTOP)
    until(lambda: all(state.startswith("T") for state in states()))
    held = machine.cpu_s()
    assert machine.share(over_s=0.1) == 0
    assert machine.cpu_s() == held
    machine.process.send_signal(signal.SIGCONT)
    until(lambda: machine.cpu_s() > held)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_kill_of_a_guest_that_does_not_listen_ends_it_at_once(
    start: Start, number: signal.Signals
) -> None:
    machine = start(SPIN)
    machine.process.send_signal(number)
    assert machine.process.wait(timeout=PATIENCE_S) == 128 + number


def test_sigkill_takes_every_thread_with_it(start: Start) -> None:
    machine = start(PRINT_Y_FOR_EVER, "--cpus", "2")
    machine.process.kill()
    assert machine.process.wait(timeout=PATIENCE_S) == -signal.SIGKILL
    assert not Path(f"/proc/{machine.pid}").exists()


@contextmanager
def control_group(controller: str) -> Iterator[tuple[Path, bool]]:
    """A new control group with that controller, and whether it is of version 2."""
    unified = (CGROUP / "cgroup.controllers").exists()
    group = (CGROUP if unified else CGROUP / controller) / f"ostler-test-{os.getpid()}"
    try:
        if unified:
            (CGROUP / "cgroup.subtree_control").write_text(f"+{controller}")
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group, unified
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_cgroup_bounds_what_a_busy_guest_takes(start: Start) -> None:
    with control_group("cpu") as (group, unified):
        machine = start(SPIN)
        if unified:
            (group / "cpu.max").write_text("10000 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("10000")
        (group / "cgroup.procs").write_text(str(machine.pid))
        assert machine.share(over_s=1.0) < 0.25, "a tenth of a CPU is what the group has"
        machine.process.kill()
        machine.process.wait()

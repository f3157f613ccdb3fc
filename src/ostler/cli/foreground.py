"""A machine in the foreground: it has this process's terminal, signals and exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from ostler.cli import DEBUG_VARIABLE, output_closed
from ostler.cli.terminal import size_followed
from ostler.config import MachineConfig, SerialConfig, SerialKind, VirtioConsoleConfig
from ostler.control.hints import Hints
from ostler.control.outcome import Ending, Outcome
from ostler.control.stdio import InputCopy, OutputCopy, RawTerminal
from ostler.control.vm import VM
from ostler.errors import ConfigError, HostError
from ostler.machine.plug import Plug

SHUTDOWN_GRACE_S = 30


def start(config: MachineConfig, plugs: Sequence[Plug], *, print_stats: bool = False) -> int:
    """Run the machine to its end; the exit code, which is the guest's where it has one."""
    vm = VM.from_config(config, plugs)
    vm.on_report = _report
    streams = filter(None, (sys.stdin, sys.stderr))
    hints = Hints(config, _report, interactive=any(stream.isatty() for stream in streams))
    with hints, ExitStack() as stack:
        output_fd = stack.enter_context(_output(config.serial))
        caught = stack.enter_context(_signals(vm))
        copies = _copies(vm, config, output_fd, hints, stack)
        stack.enter_context(vm)
        _set_title(config.name)
        for copy in copies:
            copy.start()
        hints.start()
        outcome = vm.wait()
    if print_stats:
        from ostler.control.stats import format_stats

        sys.stderr.write(format_stats(vm.stats()) + "\n")
    if config.profile:
        from ostler.control.profile import format_profile

        sys.stderr.write(format_profile(vm.profile()) + "\n")
    _tell_failure(outcome)
    hints.ended(outcome.ending)
    if outcome.ending is Ending.STOPPED and caught:
        return 128 + caught[-1]
    failures = [copy.failure for copy in copies if isinstance(copy, OutputCopy)]
    return _output_lost(failures) or outcome.exit_code


def _tell_failure(outcome: Outcome) -> None:
    """Say in one line how the guest or the engine failed, if one did."""
    if not outcome.failed:
        return
    # A failure of the engine may come with a traceback, for those who want to repair it.
    lines = str(outcome).splitlines()
    said = "\n".join(lines if os.environ.get(DEBUG_VARIABLE) else lines[:1])
    sys.stderr.write(f"ostler: guest ended by {said}\n")


def _set_title(name: str) -> None:
    """Have `ps` and `top` show the machine. Its guest runs already, so this delays nothing."""
    from setproctitle import setproctitle

    setproctitle(f"ostler: {name}")


def _output_lost(failures: Iterable[OSError | None]) -> int:
    """The exit code, or the `HostError`, where the guest's output could not be shown; else 0."""
    for error in filter(None, failures):
        if isinstance(error, BrokenPipeError):
            return output_closed()
        raise HostError(
            f"the guest's output cannot be written: {error.strerror}; the guest was stopped, make"
            " room or send its output elsewhere"
        ) from error
    return 0


def _report(text: str) -> None:
    """Tell what went wrong beside the guest; the terminal may be in raw mode."""
    sys.stderr.write(f"ostler: {text}\r\n" if sys.stderr.isatty() else f"ostler: {text}\n")


def _copies(
    vm: VM, config: MachineConfig, output_fd: int | None, hints: Hints, stack: ExitStack
) -> list[InputCopy | OutputCopy]:
    """What connects the guest's consoles with the outside; `stack` ends it after the machine.

    The terminal is the serial port's, or without one the virtio console's; what the guest prints on
    the other is shown as well.
    """
    copies: list[InputCopy | OutputCopy] = []
    has_hvc = any(isinstance(device, VirtioConsoleConfig) for device in config.devices)
    # There is no `sys.stdin` or `sys.stdout` where the descriptor was closed.
    out = sys.stdout.fileno() if sys.stdout else None
    interactive = config.serial.kind is SerialKind.STDIO or has_hvc
    if interactive and sys.stdin:
        terminal = stack.enter_context(RawTerminal(sys.stdin.fileno()))
        console = vm.serial if config.serial.kind is SerialKind.STDIO else vm.hvc
        keys = InputCopy(vm, console, sys.stdin.fileno(), commands=terminal.active)
        stack.callback(keys.finish)
        copies.append(keys)
    if has_hvc and out is not None and os.isatty(out):
        stack.enter_context(size_followed(vm, out))
    sinks = [(vm.serial, output_fd), (vm.hvc, out if has_hvc else None)]
    for console, fd in sinks:
        if fd is not None:
            output = OutputCopy(vm, console, fd, hints.saw)
            stack.callback(output.finish)
            copies.append(output)
    return copies


@contextmanager
def _output(serial: SerialConfig) -> Iterator[int | None]:
    """Where the guest's output goes, if anywhere."""
    if serial.path is None:
        wanted = serial.kind is SerialKind.STDIO and sys.stdout is not None
        yield sys.stdout.fileno() if wanted else None
        return
    try:
        fd = os.open(serial.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(
            f"--serial file:{serial.path}: {error.strerror}; give a file that can be written"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _signals(vm: VM) -> Iterator[list[int]]:
    """Have signals end the machine, in good order where they ask for that; yields those caught."""
    caught: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        polite = number in (signal.SIGTERM, signal.SIGHUP)
        vm.ask_to_end(SHUTDOWN_GRACE_S if polite else 0)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

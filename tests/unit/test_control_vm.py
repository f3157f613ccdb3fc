"""Whole machines with guests of a few instructions, run by the software CPU."""

import gc
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import ostler
from ostler import Ending
from ostler.errors import (
    ConfigError,
    DiskError,
    GuestError,
    KernelError,
    OstlerError,
    WaitTimeout,
)

LOAD_GPA = 0x10_0000
LOOP_FOREVER = b"\xf4\xeb\xfd"  # hlt; jmp to it
CRASH = b"\x0f\x0b"  # ud2, with no IDT to handle it
POWER_OFF = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef"  # out 0x604, SLP_EN | S5
ECHO = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec ee ebef")
PROGRAM = "from ostler.cli import main; main()"


def out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al."""
    return b"\x66\xba" + struct.pack("<H", port) + bytes((0xB0, value, 0xEE))


def say(text: bytes) -> bytes:
    return b"".join(out(0x3F8, byte) for byte in text)


def elf(code: bytes) -> bytes:
    """An ELF image with `code` at 1 MiB, entered in 64-bit mode."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, LOAD_GPA, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = len(code)
    program = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, LOAD_GPA, LOAD_GPA, size, size, 0x1000)
    return (ident + header + program).ljust(0x1000, b"\0") + code


Kernel = Callable[[bytes], Path]


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    """Writes a kernel whose code is given."""

    def write(code: bytes) -> Path:
        path = tmp_path / "kernel"
        path.write_bytes(elf(code))
        return path

    return write


def machine(path: Path, *devices: str, reboot: bool = True) -> ostler.VM:
    return ostler.VM(path, memory="16M", devices=devices, reboot=reboot)


@pytest.mark.parametrize(
    ("code", "ending", "exit_code", "said"),
    [
        (say(b"bye") + POWER_OFF, Ending.POWER_OFF, 0, "power-off"),
        (out(0xF4, 0x10), Ending.DEBUG_EXIT, 33, "debug exit: code 33"),
        (out(0xCF9, 6), Ending.RESET, 0, "reset: by the reset control register"),
        (out(0x64, 0xFE), Ending.RESET, 0, "reset: by the keyboard controller"),
        (CRASH, Ending.TRIPLE_FAULT, 3, "triple fault: CPU 0"),
        (
            say(b"Kernel panic - not syncing: no init\r\n") + CRASH,
            Ending.PANIC,
            3,
            "panic: no init",
        ),
        (
            say(b"Kernel panic - not syncing: no init\r\n") + out(0xCF9, 6),
            Ending.PANIC,
            3,
            "panic: no init",
        ),
    ],
    ids=["power-off", "debug-exit", "reset", "i8042", "fault", "panic-fault", "panic-reset"],
)
def test_vm_ends_as_its_guest_does(
    kernel: Kernel, code: bytes, ending: Ending, exit_code: int, said: str
) -> None:
    path = kernel(code + LOOP_FOREVER)
    with machine(path, "debug-exit,iobase=0xf4", reboot=False) as vm:
        outcome = vm.wait(timeout=30)
    assert outcome.ending is ending
    assert outcome.exit_code == exit_code
    assert str(outcome).startswith(said)


def test_vm_outcome_of_a_failed_guest_raises_when_checked(kernel: Kernel) -> None:
    with machine(kernel(CRASH)) as vm, pytest.raises(GuestError, match="triple fault"):
        vm.wait(timeout=30).check()


def test_vm_guest_reset_begins_anew(kernel: Kernel) -> None:
    with machine(kernel(say(b"boot;") + out(0xCF9, 6) + LOOP_FOREVER)) as vm:
        vm.serial.wait_for("boot;boot;boot;", timeout=30)


def test_vm_host_reset_begins_anew(kernel: Kernel) -> None:
    with machine(kernel(say(b"boot;") + LOOP_FOREVER)) as vm:
        vm.serial.wait_for("boot;", timeout=30)
        vm.reset()
        vm.serial.wait_for("boot;", timeout=30)
        assert vm.running


def test_vm_serial_input_reaches_the_guest(kernel: Kernel) -> None:
    with machine(kernel(out(0x3FC, 3) + ECHO)) as vm:
        vm.serial.write("hello")
        assert vm.serial.wait_for("hello", timeout=30) == "hello"


def test_vm_paused_says_nothing_until_resumed(kernel: Kernel) -> None:
    with machine(kernel(out(0x3FC, 3) + ECHO)) as vm:
        vm.serial.write("a")
        vm.serial.wait_for("a", timeout=30)
        vm.pause()
        vm.serial.write("b")
        with pytest.raises(WaitTimeout):
            vm.serial.wait_for("b", timeout=0.05)
        vm.resume()
        vm.serial.wait_for("b", timeout=30)


def test_vm_left_by_an_exception_is_stopped(kernel: Kernel) -> None:
    vm = machine(kernel(LOOP_FOREVER))
    with pytest.raises(KeyError), vm:
        raise KeyError
    assert not vm.running
    assert vm.wait().ending is Ending.STOPPED


def host_resources() -> tuple[int, int]:
    """How many threads and open files this process has, but for what nobody refers to."""
    gc.collect()
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def resources_return_to(expected: tuple[int, int], within_s: float = 5) -> bool:
    """Whether they do so soon: a thread of the engine may be on its last instructions.

    Fewer are as good: what an earlier test had left may have gone meanwhile.
    """

    def returned() -> bool:
        return all(now <= then for now, then in zip(host_resources(), expected, strict=True))

    deadline = time.monotonic() + within_s
    while not returned() and time.monotonic() < deadline:
        time.sleep(0.01)
    return returned()


def test_vm_leaves_no_thread_or_file_behind(kernel: Kernel, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    path = kernel(say(b"boot;") + out(0xCF9, 6) + LOOP_FOREVER)
    before = host_resources()
    devices = ("virtio-console", "virtio-rng")
    with ostler.VM(path, memory="16M", disks=[disk], devices=devices) as vm:
        vm.serial.wait_for("boot;boot;boot;", timeout=30)
        assert host_resources() > before
    assert resources_return_to(before)


def test_vm_shutdown_of_a_deaf_guest_stops_it(kernel: Kernel) -> None:
    with machine(kernel(say(b"up") + LOOP_FOREVER)) as vm:
        vm.serial.wait_for("up", timeout=30)
        assert vm.shutdown().ending is Ending.STOPPED


def test_vm_wait_too_long_raises(kernel: Kernel) -> None:
    with machine(kernel(LOOP_FOREVER)) as vm, pytest.raises(WaitTimeout, match="still runs"):
        vm.wait(timeout=0.01)


def test_vm_wait_for_ends_when_the_guest_does(kernel: Kernel) -> None:
    with (
        machine(kernel(POWER_OFF + LOOP_FOREVER)) as vm,
        pytest.raises(GuestError, match="power-off"),
    ):
        vm.serial.wait_for("login:", timeout=30)


def test_vm_that_cannot_start_releases_its_disks(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    for _ in range(2):
        with pytest.raises(KernelError):
            ostler.VM(tmp_path / "none", disks=[disk]).start()


def test_vm_is_started_once(kernel: Kernel) -> None:
    with machine(kernel(LOOP_FOREVER)) as vm, pytest.raises(ConfigError, match="started already"):
        vm.start()


def test_vm_not_started_cannot_be_waited_for(kernel: Kernel) -> None:
    with pytest.raises(ConfigError, match="not been started"):
        machine(kernel(LOOP_FOREVER)).wait()


# -- the same as a process ---------------------------------------------------------------------


def command(path: Path, *options: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        PROGRAM,
        "run",
        "--kernel",
        str(path),
        "--memory=16M",
        "--accel=soft",
        "--net=none",
        *options,
    ]


def test_run_copies_output_and_gives_the_guests_exit_code(kernel: Kernel) -> None:
    path = kernel(say(b"hello\r\n") + out(0xF4, 2) + LOOP_FOREVER)
    options = command(path, "--device=debug-exit,iobase=0xf4")
    ended = subprocess.run(options, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (5, b"hello\r\n", b"")


def test_run_failed_guest_gets_one_line(kernel: Kernel) -> None:
    path = kernel(say(b"Kernel panic - not syncing: no init\r\n") + CRASH)
    ended = subprocess.run(command(path), input=b"", capture_output=True, timeout=60)
    assert ended.returncode == 3
    assert ended.stderr == b"ostler: guest ended by panic: no init\n"


def test_run_input_from_a_pipe_reaches_the_guest(kernel: Kernel) -> None:
    # Echoes until it has read a "q".
    echo = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec ee 3c71 75ed")
    path = kernel(out(0x3FC, 3) + echo + POWER_OFF + LOOP_FOREVER)
    ended = subprocess.run(command(path), input=b"abcq", capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"abcq")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_run_signal_ends_it_and_restores_the_terminal(kernel: Kernel, number: int) -> None:
    host, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    running = subprocess.Popen(
        command(kernel(say(b"up") + LOOP_FOREVER)), stdin=terminal, stdout=subprocess.PIPE
    )
    assert running.stdout is not None
    assert running.stdout.read(2) == b"up"
    assert termios.tcgetattr(terminal) != before
    running.send_signal(number)
    assert running.wait(timeout=60) == 128 + number
    running.stdout.close()
    assert termios.tcgetattr(terminal) == before
    os.close(host)
    os.close(terminal)


def test_run_ctrl_a_x_quits(kernel: Kernel) -> None:
    host, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    running = subprocess.Popen(
        command(kernel(LOOP_FOREVER)), stdin=terminal, stdout=subprocess.DEVNULL
    )
    os.write(host, b"\x01x")
    assert running.wait(timeout=60) == 0
    assert termios.tcgetattr(terminal) == before
    os.close(host)
    os.close(terminal)


def test_run_output_to_a_file_is_whole(kernel: Kernel, tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = kernel(say(b"hello") + POWER_OFF + LOOP_FOREVER)
    options = command(path, f"--serial=file:{log}")
    assert subprocess.run(options, stdin=subprocess.DEVNULL, timeout=60).returncode == 0
    assert log.read_bytes() == b"hello"


def test_disks_change_their_image_while_the_machine_runs(kernel: Kernel, tmp_path: Path) -> None:
    base, top = tmp_path / "disk.qcow2", tmp_path / "top.qcow2"
    ostler.create_image(base, 1 << 20)
    with ostler.VM(kernel(LOOP_FOREVER), memory="16M", disks=base, net="none") as vm:
        (disk,) = vm.disks
        disk.overlay(top)
        assert disk.files == [str(top), str(base)]
        disk.commit().wait(60)
        assert disk.files == [str(base)]
        vm.stop()
    with pytest.raises(ConfigError, match="its disks are closed; ask while it does"):
        _ = vm.disks
    late = tmp_path / "late.qcow2"
    for change in (
        partial(disk.resize, 2 << 20),
        partial(disk.snapshot, "late"),
        partial(disk.delete_snapshot, "late"),
        partial(disk.overlay, late),
        partial(disk.backup, late),
        partial(disk.mirror, late),
    ):
        with pytest.raises(DiskError, match="the machine that used it has ended; start one, or"):
            change()
    assert not late.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_disk_that_cannot_be_written_out_is_told_in_one_line(
    kernel: Kernel, tmp_path: Path
) -> None:
    (small := tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], check=True)
    try:
        disk = small / "disk.qcow2"
        ostler.create_image(disk, 64 << 20)
        with ostler.VM(kernel(LOOP_FOREVER), memory="16M", disks=disk, net="none") as vm:
            with suppress(OSError, OstlerError):
                for offset in range(0, 64 << 20, 1 << 16):
                    vm.disks[0].image.write(offset, b"x" * (1 << 16))
            # Nothing is left for the tables.
            with suppress(OSError), open(small / "rest", "wb", buffering=0) as rest:
                while rest.write(bytes(4096)):
                    pass
            vm.stop()
        outcome = vm.wait()
        assert outcome.ending is Ending.DISK_LOST
        assert outcome.exit_code == 2
        assert str(outcome) == (
            f"a disk that could not be written: {disk}: No space left on device; what the guest"
            " had not flushed is lost (it ended by stopped)"
        )
    finally:
        subprocess.run(["umount", small], check=True)


def test_machine_that_does_not_run_says_so_at_once(kernel: Kernel) -> None:
    vm = ostler.VM(kernel(LOOP_FOREVER), memory="16M", consoles="agent", net="none", name="web")
    assert repr(vm) == "<VM 'web', cpus=1, memory=16M, not started>"
    for console in (vm.serial, vm.hvc, vm.console["agent"]):
        for ask in (console.wait_for, console.run):
            with pytest.raises(ConfigError, match="has not been started; call start"):
                ask("login")
    with pytest.raises(ConfigError, match="does not run; ask for its devices"):
        vm.device("pci")
    with pytest.raises(ConfigError, match="does not run; ask its network cards"):
        _ = vm.net
    with vm:
        assert vm.net == []
        assert repr(vm).endswith(", running>")
        with pytest.raises(ConfigError, match=r"no device 'nope'; there is: .*console"):
            vm.device("nope")
        for missing in ("balloon", "hotplug"):
            with pytest.raises(ConfigError, match="now; give it "):
                _ = getattr(vm, missing).target
    assert repr(vm).endswith(", ended: stopped>")
    for type_in in (vm.serial.write, vm.serial.run):
        with pytest.raises(GuestError, match=r"ended \(stopped\) and takes no input any more"):
            type_in("ls")
    with pytest.raises(GuestError, match=r"ended \(stopped\), before it printed 'login'"):
        vm.serial.wait_for("login")

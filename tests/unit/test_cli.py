import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from host_tree import FakeHost, make_tree
from small_kernel import EXIT_1, PRINT_Y_FOR_EVER, small_kernel

import ostler
from ostler.block.image import open_image
from ostler.cli import BAD_INPUT, VERBS, invoke

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/virtio_device.py"
PROGRAM = "import sys; from ostler.cli import main; main()"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(small_kernel())
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


Refused = Callable[..., str]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that has to be refused; what it says, which is one line."""

    def run(*arguments: str | Path) -> str:
        assert invoke([str(argument) for argument in arguments]) == BAD_INPUT
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("ostler: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


def test_run_without_kernel_names_the_option(refused: Refused) -> None:
    assert "--kernel is missing: give --kernel FILE; see ostler run --help" in refused("run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpus", "0"], "--cpus 0: a guest has 1 to 512 CPUs"),
        (["--cpus", "many"], "--cpus 'many': give a number from 1 to 512"),
        (["--memory", "lots"], "--memory 'lots' is not a size; write 512M or 4G"),
        (["--memory", "1000T"], "--memory 1000T: a guest has 2M to 32T"),
        (["--accel", "warp"], "--accel 'warp': there is: auto, kvm, soft"),
        (["--accel", "soft", "--cpu", "host,+amx_tile"], "soft here has no amx_tile"),
        (["--serial", "tcp:1"], "give stdio, none or file:PATH"),
        (["--device", "floppy"], "there is no such device"),
        (["--device", "debug-exit,iobase=0x3f8"], "0x3f8 belongs to serial already; try 0xf4"),
        (["--device", "debug-exit,iobase=0x40"], "0x40 belongs to pit already"),
        (["--device", "virtio-rng", "--device", "virtio-rng"], "a machine has one; give it once"),
        (["--colour"], "there is no option --colour; see ostler run --help"),
        (["--mem", "1G"], "there is no option --mem: did you mean --memory?; see"),
        (["--append"], "--append needs a value: give one behind it; see ostler run --help"),
        (["--no-reboot=yes"], "--no-reboot takes no value: leave out the =; see ostler run"),
        (["surplus"], "'surplus' is more than this command takes: leave it out"),
        (["--disk", "/nonexistent/disk.img"], "/nonexistent/disk.img"),
        (["--disk", "/"], "director"),
        (["--initrd", "/nonexistent/initrd"], "/nonexistent/initrd"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_run_with_a_wrong_option_is_refused_in_one_line(
    refused: Refused, kernel: Path, options: list[str], message: str
) -> None:
    assert message in refused("run", "--dry-run", "--kernel", kernel, *options)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--kernal", "--kernel"), ("--cpuss", "--cpus"), ("--disks", "--disk"),
        ("--accelerator", "--accel"), ("--mem", "--memory"), ("--reboot", "--no-reboot"),
        ("--ram", ""), ("--smp", "--cpus"),
        ("-m", "--memory"), ("--n", ""), ("-z", ""), ("-smp", "--cpus"), ("-kernel", "--kernel"),
    ],
)  # fmt: skip
def test_option_that_is_not_there_suggests_what_is_near_and_nothing_else(
    refused: Refused, typed: str, meant: str
) -> None:
    near = f": did you mean {meant}?" if meant else ""
    assert (
        refused("run", typed)
        == f"ostler: there is no option {typed}{near}; see ostler run --help\n"
    )


@pytest.mark.parametrize(
    ("typed", "cure"),
    [
        ("-nographic", "leave it out"), ("-enable-kvm", "give --accel kvm"),
        ("-hda", "give --disk PATH"),
        ("--drive", "give --disk PATH"), ("-cdrom", "media=cdrom"), ("--display", "leave it out"),
        ("--monitor", "Ctrl-A h"), ("-netdev", "give --net KIND"),
    ],
)  # fmt: skip
def test_option_of_qemus_is_told_what_it_is_called_here(
    refused: Refused, typed: str, cure: str
) -> None:
    said = refused("run", typed)
    assert said.startswith(f"ostler: there is no option {typed}; ")
    assert cure in said


@pytest.mark.parametrize("content", [b"", b"hello", b"\x7fELF", small_kernel()[:0x800]])
def test_run_with_something_else_than_a_kernel_is_refused(
    refused: Refused, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    assert str(path) in refused("run", "--dry-run", "--kernel", path)


@pytest.mark.parametrize("place", ["missing", "."])
def test_run_with_a_kernel_that_is_no_file_is_refused(
    refused: Refused, tmp_path: Path, place: str
) -> None:
    assert str(tmp_path) in refused("run", "--dry-run", "--kernel", tmp_path / place)


def test_run_with_a_disk_in_use_is_refused(refused: Refused, kernel: Path, disk: Path) -> None:
    with open_image(disk):
        assert str(disk) in refused("run", "--dry-run", "--kernel", kernel, "--disk", disk)


def test_run_with_more_memory_than_the_host_maps_is_refused(kernel: Path) -> None:
    # In a process of its own with little address space, where the host does refuse.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); "
    command = [
        sys.executable,
        "-c",
        limit + PROGRAM,
        "run",
        "--kernel",
        str(kernel),
        "--memory",
        "8G",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.returncode == BAD_INPUT
    assert ended.stderr.count("\n") == 1
    assert "--memory 8G: the host cannot map that much memory: this process may" in ended.stderr


def run_printer(kernel: Path, stdout: int) -> subprocess.Popen[str]:
    """`ostler run` of a guest that prints y without end."""
    kernel.write_bytes(small_kernel(PRINT_Y_FOR_EVER))
    command = [sys.executable, "-c", PROGRAM, "run", "--kernel", str(kernel), "--accel", "soft"]
    return subprocess.Popen(
        [*command, "--net", "none"],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_run_whose_output_nobody_reads_ends_as_by_sigpipe(kernel: Path) -> None:
    with run_printer(kernel, subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(5) == "yyyyy"
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == ""
        assert process.wait() == 128 + signal.SIGPIPE


def test_run_whose_output_cannot_be_written_says_why(kernel: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with run_printer(kernel, full) as process:
        os.close(full)
        assert process.stderr
        assert "cannot be written: No space left on device; the guest was" in process.stderr.read()
        assert process.wait() == BAD_INPUT


@pytest.mark.parametrize("words", [["--help"], ["image", "info", "disk"], ["host", "check"]])
def test_output_that_cannot_be_written_is_no_defect(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "disk").write_bytes(bytes(512))
    command = [sys.executable, "-c", PROGRAM, *words]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == BAD_INPUT
    assert ended.stderr == (
        "ostler: what is printed cannot be written: No space left on device; make room or send it"
        " elsewhere\n"
    )


def test_run_with_memory_that_linux_could_not_start_in_is_refused_alone(
    refused: Refused, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = FakeHost(make_tree(tmp_path / "host", {"proc/meminfo": "MemAvailable: 1048576 kB\n"}))
    monkeypatch.setattr("ostler.control.vm.HostView", lambda: small)
    said = refused("run", "--kernel", kernel, "--memory", "30T", "--serial", "none")
    assert "--memory 30T: Linux fills 480G of it at its start, and this host has 1G free" in said
    assert "say --memory 30T,force=on" in said


def test_run_with_bad_input_says_nothing_else_first(refused: Refused, tmp_path: Path) -> None:
    # Where this host is without KVM or passt, that would come first if it were not kept back.
    said = refused(
        "run", "--kernel", tmp_path / "none", "--serial", "none", "--memory", "1T,force=on"
    )
    assert said.startswith(f"ostler: kernel '{tmp_path}/none' does not exist")


def test_run_with_more_memory_than_is_free_warns_and_runs_where_forced(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(small_kernel(EXIT_1))
    command = [sys.executable, "-c", PROGRAM, "run", "--kernel", str(kernel), "--memory"]
    ended = subprocess.run(
        [*command, "16T,force=on", "--device", "debug-exit", "--accel", "soft", "--net", "none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("ostler: warning: --memory 16T is more than the ")
    assert ended.stderr.count("\n") == 1


def test_unknown_verb_is_refused(refused: Refused) -> None:
    assert f"ostler has no verb 'fly': there is {', '.join(VERBS)}" in refused("fly")
    assert "ostler image has no verb 'fly': there is" in refused("image", "fly")
    # typer adds a suggestion to its message, which is not part of the name.
    assert "ostler host has no verb 'chek': there is check; see" in refused("host", "chek")


def test_dry_run_shows_devices_of_the_users_own(
    capsys: pytest.CaptureFixture[str], kernel: Path
) -> None:
    options = ["--net", "none", "--plug", str(EXAMPLE)]
    assert invoke(["run", "--dry-run", "--kernel", str(kernel), *options]) == 0
    assert "00:01.0                  counter" in capsys.readouterr().out


def test_device_of_the_users_own_at_a_taken_place_is_refused(
    refused: Refused, kernel: Path, tmp_path: Path
) -> None:
    plug = tmp_path / "taken.py"
    plug.write_text("def plug(board): board.map_ports(0x3f8, 1, None, 'mine')")
    said = refused("run", "--dry-run", "--kernel", kernel, "--plug", plug)
    assert "taken.plug: 0x3f8 belongs to serial already" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def plug(board):\n    return 1 // 0\n", "2: ZeroDivisionError: integer division"),
        ("def plug(board):\n    int('mine')\n", "2: ValueError: invalid literal"),
        ("import json\ndef plug(board):\n  json.loads('?')\n", "3: JSONDecodeError: Expecting"),
        ("\ndef plug(): pass\n", "2: TypeError: plug() takes 0 positional arguments"),
        ("def plug(board)\n", "1: SyntaxError: expected ':'"),
        ("\nimport nothing_of_that_name\n", "2: ModuleNotFoundError: No module named"),
    ],
)
def test_mistake_in_a_plug_file_is_told_with_its_place(
    refused: Refused, kernel: Path, tmp_path: Path, text: str, said: str
) -> None:
    plug = tmp_path / "bad.py"
    plug.write_text(text)
    assert f"{plug}:{said}" in refused("run", "--dry-run", "--kernel", kernel, "--plug", plug)


def test_dry_run_prints_the_machine_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], kernel: Path, disk: Path
) -> None:
    before = sorted(kernel.parent.iterdir())
    arguments = ["run", "--dry-run", "--kernel", str(kernel), "--disk", str(disk)]
    assert invoke([*arguments, "--memory", "6G", "--device", "debug-exit,iobase=0xf4"]) == 0
    said = capsys.readouterr().out
    assert "0x100000000-0x1bfffffff  RAM 3G" in said
    assert "0x00f4-0x00f7            debug-exit" in said
    assert "IRQ 4                    serial" in said
    assert f"00:01.0                  disk {disk}" in said
    assert sorted(kernel.parent.iterdir()) == before


def test_dry_run_shows_the_processor_that_was_asked_for(
    kernel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--dry-run", "--kernel", str(kernel), "--accel", "soft"]
    assert invoke([*arguments, "--cpu", "x86-64-v3,-AVX2"]) == 0
    assert "\naccel     soft\ncpu       x86-64-v3,-avx2\n" in capsys.readouterr().out
    assert invoke(arguments) == 0
    assert "\naccel     soft\ncpu       host\n" in capsys.readouterr().out


def test_dry_run_shows_published_ports_and_shared_directories(
    capsys: pytest.CaptureFixture[str], kernel: Path, tmp_path: Path
) -> None:
    arguments = ["--publish", "2222:22", "--share", f"{tmp_path}:home,readonly=on"]
    assert invoke(["run", "--dry-run", "--kernel", str(kernel), *arguments]) == 0
    said = capsys.readouterr().out
    assert "net0                     user, an address of the registry" in said
    assert "127.0.0.1:2222/tcp       port 22 of the guest, by net0" in said
    assert f"home                     {tmp_path} (readonly)" in said


def test_list_of_no_addresses_says_so_beside_its_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OSTLER_STATE_DIR", str(tmp_path))
    assert invoke(["net", "mac", "list"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("no machine has an address now")
    assert err.count("\n") == 1


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert invoke([verb, "--help"]) == 0
    assert capsys.readouterr().out


# Each takes 5 to 90 ms to import, which every start would pay for.
SLOW = {"asyncio", "concurrent", "email", "pydantic", "rich", "secrets"}


def loaded_by(*arguments: str | Path) -> set[str]:
    """The modules that a command line has imported when it has ended."""
    check = "import sys; from ostler.cli import invoke; invoke(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", check, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_loads_no_part_of_the_engine_and_nothing_slow() -> None:
    loaded = loaded_by("--help")
    assert not {"msgspec", "ostler.engine", "ostler._native", *SLOW} & loaded
    assert len(loaded) < 180, "more modules than a help text needs"


def test_run_to_its_end_loads_nothing_slow(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(small_kernel(EXIT_1))
    loaded = loaded_by("run", "--kernel", kernel, "--device", "debug-exit")
    assert "ostler.control.vm" in loaded
    assert not SLOW & loaded
    assert len(loaded) < 330, "more modules than a boot needs"


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ostler ")


def test_image_info_loads_no_machine_and_no_options_of_new_images(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    ostler.create_image(image, 1 << 20)
    loaded = loaded_by("image", "info", image)
    assert "ostler.block.formats.qcow2.image" in loaded
    assert not {"msgspec", "ctypes", "ostler.registers", "ostler.config.machine"} & loaded

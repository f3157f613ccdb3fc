"""The NBD client with servers that others wrote, and with our own."""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tls_certificates import make_certificates

from ostler.block import open_image
from ostler.block.image import Image
from ostler.block.jobs.compare import compare
from ostler.block.jobs.convert import convert
from ostler.block.nbd.export import Export
from ostler.block.nbd.server import Server
from ostler.block.nbd.tls import server_context
from ostler.block.transports.nbd import NbdFile
from ostler.errors import DiskError, HostError

MIB = 1 << 20
SIZE = 6 * MIB
Serve = Callable[[Path, Path], contextlib.AbstractContextManager[None]]
ACCEPTING = "00010000"  # __SO_ACCEPTCON


def listening(where: Path) -> bool:
    """Whether somebody takes connections there; the file comes earlier (proc_net_unix(5))."""
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(words[-1] == str(where) and words[3] == ACCEPTING for words in sockets)


@contextmanager
def process(where: Path, *command: object) -> Iterator[None]:
    """A server that listens on `where`."""
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL) as server:
        until = time.monotonic() + 60
        while not listening(where) and time.monotonic() < until and server.poll() is None:
            time.sleep(0.01)
        assert listening(where), f"{command[0]} does not start"
        try:
            yield
        finally:
            # qemu-nbd sometimes misses a SIGTERM that comes while a client leaves.
            server.kill()


def qemu_nbd(disk: Path, where: Path) -> contextlib.AbstractContextManager[None]:
    return process(where, "qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", where, disk)


def nbdkit(disk: Path, where: Path, *more: object) -> contextlib.AbstractContextManager[None]:
    filters = [f"--filter={word}" for word in more if "=" not in str(word)]
    settings = [word for word in more if "=" in str(word)]
    return process(where, "nbdkit", "-f", "-U", where, *filters, "file", disk, *settings)


def nbdkit_of_blocks(disk: Path, where: Path) -> contextlib.AbstractContextManager[None]:
    """A server that insists on blocks of 4 KiB, and 64 KiB at most."""
    sizes = ("blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536")
    return nbdkit(disk, where, "blocksize-policy", *sizes, "blocksize-error-policy=error")


def nbdkit_without_extents(disk: Path, where: Path) -> contextlib.AbstractContextManager[None]:
    return nbdkit(disk, where, "noextents", "nozero", "zeromode=none")


@contextmanager
def ostler(disk: Path, where: Path) -> Iterator[None]:
    with open_image(disk, format="raw") as image, Server({"": Export("", image)}) as server:
        server.listen_unix(where)
        yield


SERVERS = [qemu_nbd, nbdkit, nbdkit_of_blocks, nbdkit_without_extents, ostler]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(MIB))
        file.truncate(SIZE)
    return path


def url(where: Path) -> str:
    return f"nbd+unix:///?socket={where}"


@pytest.mark.parametrize("serve", SERVERS)
def test_random_changes_are_what_the_server_has(serve: Serve, disk: Path, tmp_path: Path) -> None:
    truth, dice = bytearray(disk.read_bytes()), random.Random(4)
    with serve(disk, tmp_path / "s"), open_image(url(tmp_path / "s"), format="raw") as image:
        assert image.size_bytes == SIZE
        for _ in range(150):
            change(dice, image, truth)
        image.flush()
        assert image.read(0, SIZE) == truth
        position = 0
        for extent in image.extents(0, SIZE):
            assert extent.offset == position
            position = extent.end
            assert not extent.zero or not any(truth[extent.offset : extent.end])
        assert position == SIZE
    assert disk.read_bytes() == truth


def change(dice: random.Random, image: Image, truth: bytearray) -> None:
    offset = dice.randrange(SIZE)
    length = min(dice.choice((1, 512, 4096, 70_000, 900_000)), SIZE - offset)
    piece = bytes(length)
    if dice.random() < 0.7:
        piece = dice.randbytes(length)
        image.write(offset, piece)
    else:
        image.write_zeroes(offset, length, unmap=dice.random() < 0.5)
    truth[offset : offset + length] = piece


@pytest.mark.parametrize("serve", SERVERS)
def test_probing_finds_the_format_on_the_server(serve: Serve, disk: Path, tmp_path: Path) -> None:
    vdi = tmp_path / "disk.vdi"
    subprocess.run(["qemu-img", "convert", "-O", "vdi", str(disk), str(vdi)], check=True)
    # In whole blocks: what is over, no server with a smallest block gives.
    with vdi.open("ab") as file:
        file.truncate(vdi.stat().st_size + -vdi.stat().st_size % 4096)
    with serve(vdi, tmp_path / "s"), open_image(url(tmp_path / "s"), readonly=True) as image:
        assert image.format == "vdi"
        assert image.read(0, SIZE) == disk.read_bytes()


def test_extents_are_the_servers(disk: Path, tmp_path: Path) -> None:
    with qemu_nbd(disk, tmp_path / "s"), NbdFile(url(tmp_path / "s"), readonly=True) as file:
        data, hole = file.extents(1000, SIZE - 1000)
    assert (data.offset, data.end, data.zero) == (1000, MIB, False)
    assert (hole.end, hole.allocated, hole.zero) == (SIZE, False, True)


def test_threads_have_connections_of_their_own(disk: Path, tmp_path: Path) -> None:
    # Each request takes 0.3 s there: in turns the eight would take 2.4 s.
    with (
        nbdkit(disk, tmp_path / "s", "delay", "delay-read=300ms"),
        NbdFile(url(tmp_path / "s"), readonly=True) as file,
        ThreadPoolExecutor(4) as pool,
    ):
        began = time.monotonic()
        pieces = pool.map(lambda number: file.read(number * 4096, 4096), range(8))
        assert b"".join(pieces) == disk.read_bytes()[: 8 * 4096]
        assert time.monotonic() - began < 2


def test_error_of_the_server_is_an_error_and_the_next_request_works(
    disk: Path, tmp_path: Path
) -> None:
    failing = tmp_path / "failing"
    failing.touch()
    settings = ("error=ENOSPC", "error-rate=100%", f"error-file={failing}")
    with (
        nbdkit(disk, tmp_path / "s", "error", *settings),
        NbdFile(url(tmp_path / "s"), readonly=False) as file,
    ):
        for act in (
            lambda: file.read(0, 512),
            lambda: file.write(0, b"x" * 512),
            lambda: file.write_zeroes(0, 512),
            lambda: list(file.extents(0, SIZE)),
        ):
            with pytest.raises(HostError, match="failed: No space left on device"):
                act()
        failing.unlink()
        assert file.read(0, 512) == disk.read_bytes()[:512]


def test_server_slower_than_the_limit_is_an_error_and_the_next_request_connects_again(
    disk: Path, tmp_path: Path
) -> None:
    with (
        nbdkit(disk, tmp_path / "s", "delay", "delay-write=1"),
        NbdFile(url(tmp_path / "s"), readonly=False, answer_s=0.3) as file,
    ):
        with pytest.raises(HostError, match=r"silent for 0\.3 s"):
            file.write(0, b"x" * 512)
        assert file.read(MIB, 4) == bytes(4)


def test_server_that_died_is_an_error_and_one_in_its_place_is_used(
    disk: Path, tmp_path: Path
) -> None:
    where = tmp_path / "s"
    with ExitStack() as first:
        first.enter_context(ostler(disk, where))
        file = NbdFile(url(where), readonly=True)
        first.pop_all().close()
    with pytest.raises(HostError, match="connection to the server"):
        file.read(0, 1)
    with pytest.raises(DiskError, match="cannot connect"):
        file.read(0, 1)
    with ostler(disk, where):
        assert file.read(0, 4) == disk.read_bytes()[:4]
        file.close()
    with pytest.raises(DiskError, match="was closed"):
        file.read(0, 1)


def test_readonly_export_opened_for_writing_is_refused(disk: Path, tmp_path: Path) -> None:
    command = ("qemu-nbd", "-r", "-t", "-f", "raw", "-k", tmp_path / "s", disk)
    with process(tmp_path / "s", *command):
        with pytest.raises(DiskError, match="the server offers it read-only"):
            open_image(url(tmp_path / "s"))
        with open_image(url(tmp_path / "s"), readonly=True) as image:
            assert image.read(0, SIZE) == disk.read_bytes()


def test_export_unknown_is_an_error_with_its_name(disk: Path, tmp_path: Path) -> None:
    with (
        qemu_nbd(disk, tmp_path / "s"),
        pytest.raises(DiskError, match="there is no export other"),
    ):
        open_image(f"nbd+unix:///other?socket={tmp_path / 's'}")


def test_write_beyond_the_end_is_refused_here(disk: Path, tmp_path: Path) -> None:
    with ostler(disk, tmp_path / "s"), NbdFile(url(tmp_path / "s"), readonly=False) as file:
        acts: list[Callable[[], None]] = [
            lambda: file.write(SIZE - 1, b"xx"),
            lambda: file.discard(SIZE, 1),
            lambda: file.truncate(SIZE + 1),
        ]
        for act in acts:
            with pytest.raises(DiskError, match=f"an export of {SIZE} bytes"):
                act()


def test_many_threads_write_through_one_file(disk: Path, tmp_path: Path) -> None:
    with ostler(disk, tmp_path / "s"), NbdFile(url(tmp_path / "s"), readonly=False) as file:
        barrier = threading.Barrier(8)

        def write(number: int) -> None:
            barrier.wait()
            for at in range(number * 4096, SIZE, 8 * 4096):
                file.write(at, bytes([number]) * 4096)
            file.flush()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        wanted = b"".join(bytes([number]) * 4096 for number in range(8)) * (SIZE // (8 * 4096))
        assert file.read(0, SIZE) == wanted


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    make_certificates(directory)
    return directory


def test_tls_checks_the_servers_certificate(disk: Path, tmp_path: Path, certificates: Path) -> None:
    tls = server_context(certificates)
    with open_image(disk) as image, Server({"": Export("", image)}, tls=tls) as server:
        port = server.listen_tcp("localhost", 0)
        good = f"nbds://localhost:{port}/?tls-certificates={certificates}"
        with open_image(good, format="raw") as remote:
            remote.write(5, b"secret")
            assert remote.read(0, SIZE) == disk.read_bytes()
        with pytest.raises(HostError, match=r"TLS failed: .*(doesn't match|mismatch)"):
            open_image(f"{good}&tls-hostname=elsewhere")
        with pytest.raises(HostError, match=r"TLS failed: .*(self-signed|unable to get)"):
            open_image(f"nbds://localhost:{port}/")
        with pytest.raises(DiskError, match="the server needs TLS; use nbds://"):
            open_image(f"nbd://localhost:{port}/")
    with ostler(disk, tmp_path / "s"), pytest.raises(HostError, match="does not offer TLS"):
        open_image(f"nbds+unix:///?socket={tmp_path / 's'}")


def test_tls_of_nbdkit_is_spoken(disk: Path, tmp_path: Path, certificates: Path) -> None:
    options = ("--tls=require", f"--tls-certificates={certificates}", "--tls-verify-peer")
    where = tmp_path / "s"
    with process(where, "nbdkit", "-f", "-U", where, *options, "file", disk):
        target = f"nbds+unix:///?socket={where}&tls-certificates={certificates}"
        with open_image(target, readonly=True) as image:
            assert image.read(0, SIZE) == disk.read_bytes()


def test_image_written_onto_an_export_leaves_nothing_of_what_was_there(
    disk: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"old" * (SIZE // 3))
    with ostler(target, tmp_path / "s"), open_image(disk, format="raw", readonly=True) as source:
        convert([source], url(tmp_path / "s"), format="raw").wait()
    assert target.read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_export_is_converted_and_compared(format: str, disk: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with (
        qemu_nbd(disk, tmp_path / "s"),
        open_image(url(tmp_path / "s"), format="raw", readonly=True) as source,
    ):
        convert([source], target, format=format).wait()
        with open_image(target, format=format, readonly=True) as copy:
            assert compare(source, copy).wait() is None
    subprocess.run(["qemu-img", "compare", "-f", "raw", str(disk), str(target)], check=True)

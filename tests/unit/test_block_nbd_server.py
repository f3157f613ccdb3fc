"""The NBD server with the clients that others wrote: libnbd's tools and QEMU's block layer."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tls_certificates import make_certificates

from ostler.block import open_image
from ostler.block.nbd.export import Export, bitmap_of
from ostler.block.nbd.server import Server
from ostler.block.nbd.tls import server_context
from ostler.cli import invoke
from ostler.errors import ConfigError, DiskError, HostError

MIB = 1 << 20
SIZE = 8 * MIB
# The binding is for the Python of the system, whatever Python runs the tests.
NBDSH = ("/usr/bin/python3", "-m", "nbd")
OSTLER = [sys.executable, "-c", "from ostler.cli import main; main()"]


def run(*command: object, check: bool = True) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def nbdsh(url: str, *lines: str) -> str:
    """Run lines of Python with `h`, libnbd's handle."""
    words = [word for line in lines for word in ("-c", line)]
    return run(*NBDSH, "--base-allocation", "-u", url, *words)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Data, a hole, data."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(MIB))
        file.truncate(SIZE)
        file.seek(5 * MIB)
        file.write(random.Random(2).randbytes(MIB))
    return path


@contextmanager
def serving(path: Path, *, readonly: bool = False, format: str | None = None) -> Iterator[str]:
    """The URL of an export named disk, for as long as the context lasts."""
    where = path.parent / "s"
    with (
        open_image(path, readonly=readonly, format=format) as image,
        Server({"disk": Export("disk", image, "words")}) as server,
    ):
        server.listen_unix(where)
        yield f"nbd+unix:///disk?socket={where}"
    assert not where.exists()


def test_nbdinfo_sees_what_the_export_can(disk: Path) -> None:
    with serving(disk) as url:
        told = run("nbdinfo", url)
    for line in (
        "newstyle-fixed without TLS, using structured packets", "description: words",
        f"export-size: {SIZE}", "base:allocation", "can_multi_conn: true", "can_fua: true",
        "can_trim: true", "can_zero: true", "can_df: true", "is_read_only: false",
    ):  # fmt: skip
        assert line in told


def test_nbdinfo_lists_exports_and_is_told_of_one_that_is_missing(disk: Path) -> None:
    with open_image(disk) as image, Server({n: Export(n, image) for n in ("a", "b")}) as server:
        server.listen_unix(disk.parent / "s")
        url = f"nbd+unix:///{{}}?socket={disk.parent / 's'}"
        listed = run("nbdinfo", "--list", url.format(""))
        assert 'export="a"' in listed
        assert 'export="b"' in listed
        assert "for export: c" in run("nbdinfo", url.format("c"), check=False)


def test_nbdcopy_copies_both_ways(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    with serving(disk) as url:
        run("nbdcopy", url, other)
    assert other.read_bytes() == disk.read_bytes()
    other.write_bytes(random.Random(3).randbytes(SIZE))
    with serving(disk) as url:
        run("nbdcopy", "--flush", other, url)
    assert other.read_bytes() == disk.read_bytes()


def test_holes_are_told_and_sent_as_holes(disk: Path) -> None:
    with serving(disk) as url:
        mapped = run("nbdinfo", "--map", url).split()
        assert mapped[0::4] == ["0", str(MIB), str(5 * MIB), str(6 * MIB)]
        assert mapped[2::4] == ["0", "3", "0", "3"]
        told = nbdsh(
            url,
            "got = []",
            "h.pread_structured(6 << 20, 0, lambda b, o, s, e: got.append((o, len(b), s)))",
            "print(got, h.pread(1 << 20, 1 << 20) == bytes(1 << 20))",
            "whole = lambda b, o, s, e: got.append(len(b))",
            "h.pread_structured(6 << 20, 0, whole, nbd.CMD_FLAG_DF)",
            "print(got[-1])",
        )
    # READ_DATA is 1, READ_HOLE is 2.
    assert "(0, 1048576, 1), (1048576, 4194304, 2), (5242880, 1048576, 1)] True" in told
    assert told.endswith(f"{6 * MIB}\n")


DIRTY = "qemu:dirty-bitmap:daily"


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A qcow2 image whose bitmap marks three runs, and one that marks nothing."""
    path = tmp_path / "disk.qcow2"
    run("qemu-img", "create", "-f", "qcow2", path, SIZE)
    run("qemu-img", "bitmap", "--add", path, "daily")
    run("qemu-img", "bitmap", "--add", "--disable", path, "idle")
    changes = ("write -P 1 64k 64k", "write -P 2 1M 1M", f"write -P 3 {SIZE - 512} 512")
    run("qemu-io", *(word for change in changes for word in ("-c", change)), path)
    return path


def dirty(url: str, bitmap: str = DIRTY) -> list[tuple[int, int]]:
    """The runs that a bitmap marks, as libnbd's nbdinfo is told of them."""
    rows = [line.split() for line in run("nbdinfo", f"--map={bitmap}", url).splitlines()]
    return [(int(row[0]), int(row[1])) for row in rows if row[2] == "1"]


@contextmanager
def serving_bitmaps(path: Path, *, readonly: bool) -> Iterator[str]:
    with open_image(path, readonly=readonly) as image:
        bitmaps = {name: bitmap_of(image, name) for name in ("daily", "idle")}
        with Server({"": Export("", image, bitmaps=bitmaps)}) as server:
            server.listen_unix(path.parent / "s")
            yield f"nbd+unix:///?socket={path.parent / 's'}"


@pytest.mark.parametrize("readonly", [True, False])
def test_bitmaps_are_told_as_qemu_nbd_tells_them(marked: Path, readonly: bool) -> None:
    wanted = [(64 << 10, 64 << 10), (MIB, MIB), (SIZE - (64 << 10), 64 << 10)]
    with serving_bitmaps(marked, readonly=readonly) as url:
        assert dirty(url) == wanted
        assert dirty(url, "qemu:dirty-bitmap:idle") == []
        told = run("nbdinfo", url)
        for context in ("base:allocation", DIRTY, "qemu:dirty-bitmap:idle"):
            assert context in told
        options = f"driver=nbd,server.type=unix,server.path={marked.parent / 's'}"
        options += f",x-dirty-bitmap={DIRTY}"
        mapped = json.loads(run("qemu-img", "map", "--output=json", "--image-opts", options))
        # With that option QEMU shows what is marked as what has no data.
        assert [(e["start"], e["length"]) for e in mapped if not e["data"]] == wanted
        # Two contexts in one answer.
        both = nbdsh_of(
            url,
            ("base:allocation", DIRTY),
            "got = {}",
            "h.block_status(2 << 20, 0, lambda c, o, e, err: got.update({c: e}))",
            "print(sorted(got.items()))",
        )
        assert f"('{DIRTY}', [65536, 0, 65536, 1, 917504, 0, 1048576, 1])" in both
        assert "('base:allocation', " in both


def nbdsh_of(url: str, contexts: tuple[str, ...], *lines: str) -> str:
    chosen = [f"h.add_meta_context('{context}')" for context in contexts]
    words = [word for line in (*chosen, f"h.connect_uri('{url}')", *lines) for word in ("-c", line)]
    return run(*NBDSH, *words)


def test_bitmap_that_records_follows_what_clients_write(marked: Path) -> None:
    with serving_bitmaps(marked, readonly=False) as url:
        run("qemu-io", "-f", "raw", "-c", "write -P 7 4M 100", "-c", "write -z 5M 64k", url)
        assert dirty(url)[2:4] == [(4 * MIB, 64 << 10), (5 * MIB, 64 << 10)]
    run("qemu-img", "check", marked)
    with serving_bitmaps(marked, readonly=True) as url:
        assert len(dirty(url)) == 5


def test_bitmap_that_is_not_there_is_refused(marked: Path, disk: Path) -> None:
    told = run(*OSTLER, "image", "serve", marked, "-k", marked.parent / "s", "-B", "x", check=False)
    assert told == f"ostler: {marked}: there is no bitmap 'x'; there is: daily, idle\n"
    with (
        open_image(disk, format="raw") as raw,
        pytest.raises(DiskError, match="format raw have no bitmaps"),
    ):
        bitmap_of(raw, "x")


def test_qemu_reads_writes_zeroes_and_discards(disk: Path) -> None:
    with serving(disk) as url:
        qemu = ("qemu-io", "-f", "raw")
        changes = (
            "write -P 3 1M 64k",
            "write -z -u 0 1M",
            "discard 5M 512k",
            "write -f -P 4 7M 512",
        )
        run(*qemu, *(word for change in changes for word in ("-c", change)), "-c", "flush", url)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", url, url)
        reads = ("read -P 3 1M 64k", "read -P 0 0 1M", "read -P 4 7M 512", "read -P 0 1088k 1M")
        told = run(*qemu, *(word for read in reads for word in ("-c", read)), url)
        assert "failed" not in told
    content = disk.read_bytes()
    assert content[:MIB] == bytes(MIB)
    assert content[7 * MIB : 7 * MIB + 512] == b"\4" * 512
    assert disk.stat().st_blocks * 512 < 2 * MIB


def test_image_of_another_format_is_served_as_its_disk(disk: Path, tmp_path: Path) -> None:
    vmdk = tmp_path / "disk.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", disk, vmdk)
    with serving(vmdk, readonly=True) as url:
        assert "is_read_only: true" in run("nbdinfo", url)
        assert "Images are identical" in run("qemu-img", "compare", "-f", "raw", url, disk)


def test_request_that_cannot_be_is_an_error_and_the_next_one_works(disk: Path) -> None:
    with serving(disk) as url:
        told = nbdsh(
            url,
            "h.set_strict_mode(0)\n"
            "def code(act):\n"
            "    try:\n"
            "        act()\n"
            "    except nbd.Error as error:\n"
            "        return error.errno\n"
            f"print(code(lambda: h.pread(512, {SIZE})),\n"
            f"      code(lambda: h.pwrite(b'xx', {SIZE - 1})),\n"
            f"      code(lambda: h.trim(1, {SIZE})), code(lambda: h.zero(1, 0, 1 << 10)),\n"
            f"      code(lambda: h.block_status(1, {SIZE}, lambda *a: 0)))\n"
            "print(len(h.pread(512, 0)))",
        )
    assert told == "EINVAL ENOSPC ENOSPC EINVAL EINVAL\n512\n"


def test_readonly_export_refuses_writes(disk: Path) -> None:
    before = disk.read_bytes()
    with serving(disk, readonly=True) as url:
        told = nbdsh(
            url,
            "h.set_strict_mode(0)\n"
            "for act in (lambda: h.pwrite(b'x', 0), lambda: h.zero(1, 0), lambda: h.trim(1, 0)):\n"
            "    try:\n"
            "        act()\n"
            "    except nbd.Error as error:\n"
            "        print(error.errno)",
        )
    assert told == "EPERM\n" * 3
    assert disk.read_bytes() == before


def test_clients_at_the_same_time_each_read_their_part(disk: Path) -> None:
    with serving(disk) as url:
        copies = [
            subprocess.Popen(["nbdcopy", "--connections=4", url, disk.parent / f"copy{number}"])
            for number in range(3)
        ]
        assert [copy.wait(60) for copy in copies] == [0, 0, 0]
    for number in range(3):
        assert (disk.parent / f"copy{number}").read_bytes() == disk.read_bytes()


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    make_certificates(directory)
    return directory


@pytest.fixture
def secure(disk: Path, certificates: Path) -> Iterator[int]:
    """The port of a server that wants TLS and client certificates."""
    tls = server_context(certificates)
    with open_image(disk) as image, Server({"disk": Export("disk", image)}, tls=tls) as server:
        yield server.listen_tcp("localhost", 0)


def test_tls_with_a_certificate_serves_libnbd_and_qemu(
    secure: int, certificates: Path, disk: Path
) -> None:
    url = f"nbds://localhost:{secure}/disk?tls-certificates={certificates}"
    assert "newstyle-fixed with TLS" in run("nbdinfo", url)
    run("nbdcopy", url, disk.parent / "copy.raw")
    assert (disk.parent / "copy.raw").read_bytes() == disk.read_bytes()
    credentials = f"tls-creds-x509,id=tls,endpoint=client,dir={certificates}"
    image = f"driver=nbd,host=localhost,port={secure},export=disk,tls-creds=tls"
    told = run("qemu-img", "info", "--object", credentials, "--image-opts", image)
    assert f"({SIZE} bytes)" in told


def test_tls_wanted_is_not_given_in_clear_nor_to_strangers(
    secure: int, certificates: Path, tmp_path: Path
) -> None:
    told = run("nbdinfo", f"nbd://localhost:{secure}/disk", check=False)
    assert "TLS" in told
    assert "export-size" not in told
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    url = f"nbds://localhost:{secure}/disk?tls-certificates={stranger}"
    assert "export-size" not in run("nbdinfo", url, check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_listening_for_others_without_tls_is_refused(host: str) -> None:
    with Server({}) as server, pytest.raises(ConfigError, match="add --tls-certs"):
        server.listen_tcp(host, 0)


def test_listening_for_others_is_allowed_when_told() -> None:
    with Server({}, insecure=True) as server:
        assert server.listen_tcp("0.0.0.0", 0) > 0


def test_certificates_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server-cert\.pem: no such file; make"):
        server_context(tmp_path)


def test_socket_of_a_dead_server_is_replaced_and_of_a_living_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Server({}) as server:
        server.listen_unix(path)
        assert path.stat().st_mode & 0o777 == 0o600
        with Server({}) as second, pytest.raises(HostError, match="another server listens"):
            second.listen_unix(path)


# The command.


def test_serve_prints_its_address_serves_and_ends_on_a_signal(disk: Path) -> None:
    command = [*OSTLER, "image", "serve", str(disk), "--bind", "localhost"]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url.startswith("nbd://localhost:")
        run("nbdcopy", url, disk.parent / "copy.raw")
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
    assert (disk.parent / "copy.raw").read_bytes() == disk.read_bytes()


def test_serve_once_ends_with_its_last_client(disk: Path) -> None:
    where = disk.parent / "s"
    command = [*OSTLER, "image", "serve", str(disk), "-k", str(where)]
    with subprocess.Popen([*command, "--once"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert run("nbdinfo", "--size", server.stdout.readline().strip()) == f"{SIZE}\n"
        assert server.wait(10) == 0
    assert not os.path.exists(where)


def test_help_of_serve_has_tls_among_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["image", "serve", "--help"]) == 0
    usage, options = capsys.readouterr().out.split("Options:")
    assert "--tls-certs DIR" in options
    assert "--no-tls-verify-peer" in options
    assert "tls_verify_peer" not in usage

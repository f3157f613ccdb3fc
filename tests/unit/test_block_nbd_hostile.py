"""NBD peers that lie, stall or leave: on both sides, bounded and without a leak."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ostler.block import open_image
from ostler.block.nbd.export import Export
from ostler.block.nbd.protocol import (
    CHUNK,
    CHUNK_MAGIC,
    INIT_MAGIC,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Chunk,
    Command,
    Option,
    Reply,
)
from ostler.block.nbd.server import Server
from ostler.block.transports.nbd import NbdFile
from ostler.errors import DiskError, HostError, OstlerError

SIZE = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"disk" * (SIZE // 4))
    with open_image(path) as image:
        exports = {"disk": Export("disk", image)}
        with Server(exports, silence_s=0.3, handshake_s=1.0, clients_max=2) as server:
            yield server


class Client:
    """A client as a test wants it: raw bytes over a socket."""

    def __init__(self, server: Server) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        server.adopt(theirs)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, length: int) -> bytes:
        got = b""
        while len(got) < length:
            more = self.socket.recv(length - len(got))
            assert more, f"the server left after {got!r}"
            got += more
        return got

    def is_dropped(self) -> bool:
        """Whether the server ends the connection, whatever it says before."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def greet(self) -> None:
        assert self.receive(18)[:8] == INIT_MAGIC
        self.send(struct.pack(">I", 3))

    def option(self, option: int, data: bytes = b"", length: int | None = None) -> None:
        self.send(OPTION.pack(OPTION_MAGIC, option, len(data) if length is None else length) + data)

    def reply(self) -> tuple[int, bytes]:
        magic, _, kind, length = OPTION_REPLY.unpack(self.receive(OPTION_REPLY.size))
        assert magic == OPTION_REPLY_MAGIC
        return kind, self.receive(length)

    def go(self) -> None:
        self.greet()
        self.option(Option.GO, struct.pack(">I4sH", 4, b"disk", 0))
        while self.reply()[0] != Reply.ACK:
            pass

    def request(self, command: int, offset: int, length: int, flags: int = 0) -> None:
        self.send(REQUEST.pack(REQUEST_MAGIC, flags, command, 77, offset, length))

    def answer(self) -> int:
        magic, error, cookie = SIMPLE_REPLY.unpack(self.receive(SIMPLE_REPLY.size))
        assert (magic, cookie) == (SIMPLE_REPLY_MAGIC, 77)
        return int(error)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server)
    with client.socket:
        yield client


BAD_HANDSHAKES: list[tuple[str, Callable[[Client], None]]] = [
    ("silence", lambda client: None),
    ("flags we lack", lambda client: client.send(struct.pack(">I", 0x80000003))),
    ("no fixed newstyle", lambda client: client.send(struct.pack(">I", 0))),
    ("noise", lambda client: client.send(os.urandom(4096))),
    ("half an option", lambda client: client.send(struct.pack(">I", 3) + OPTION_MAGIC)),
    ("option magic", lambda client: client.send(struct.pack(">I8sII", 3, b"IHAVENOT", 7, 0))),
    (
        "an option of 4 GiB",
        lambda client: client.send(struct.pack(">I8sII", 3, OPTION_MAGIC, 7, 0xFFFFFFFF)),
    ),
    (
        "an unknown export by its old name",
        lambda client: client.send(struct.pack(">I8sII4s", 3, OPTION_MAGIC, 1, 4, b"nope")),
    ),
]


@pytest.mark.parametrize(
    "act", [act for _, act in BAD_HANDSHAKES], ids=[n for n, _ in BAD_HANDSHAKES]
)
def test_handshake_that_is_none_is_dropped(client: Client, act: Callable[[Client], None]) -> None:
    client.receive(18)
    act(client)
    assert client.is_dropped()


def test_handshake_a_byte_at_a_time_is_dropped_at_its_deadline(client: Client) -> None:
    client.receive(18)
    # Each byte is in time for the silence limit; all of them are not for the deadline.
    drip = struct.pack(">I8sII", 3, OPTION_MAGIC, Option.GO, 4096) + bytes(100)

    def send_slowly() -> None:
        for byte in drip:
            client.send(bytes([byte]))
            threading.Event().wait(0.1)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_slowly()


def test_options_without_end_are_dropped(client: Client) -> None:
    client.greet()
    with pytest.raises((AssertionError, OSError)):
        ask_without_end(client)


def ask_without_end(client: Client) -> None:
    for _ in range(2000):
        client.option(77)
        client.reply()


BAD_OPTIONS = [
    (Option.GO, b"", Reply.ERR_INVALID),
    (Option.GO, struct.pack(">I4sH", 4, b"nope", 0), Reply.ERR_UNKNOWN),
    (Option.GO, struct.pack(">I", 0xFFFFFFFF), Reply.ERR_TOO_BIG),
    (Option.GO, struct.pack(">I4s", 400, b"disk"), Reply.ERR_INVALID),
    (Option.GO, struct.pack(">I4sH", 4, b"disk", 9), Reply.ERR_INVALID),
    (Option.GO, struct.pack(">I2sH", 2, b"\xff\xfe", 0), Reply.ERR_INVALID),
    (Option.LIST, b"data", Reply.ERR_INVALID),
    (Option.STARTTLS, b"", Reply.ERR_POLICY),
    (Option.SET_META_CONTEXT, struct.pack(">I4sI", 4, b"disk", 0), Reply.ERR_INVALID),
    (77, b"what", Reply.ERR_UNSUP),
]


@pytest.mark.parametrize(("option", "data", "kind"), BAD_OPTIONS)
def test_option_that_is_wrong_is_an_error_and_the_handshake_goes_on(
    client: Client, option: int, data: bytes, kind: Reply
) -> None:
    client.greet()
    client.option(option, data)
    assert client.reply()[0] == kind
    client.option(Option.GO, struct.pack(">I4sH", 4, b"disk", 0))
    while client.reply()[0] != Reply.ACK:
        pass


@pytest.mark.parametrize("count", [2, 0xFFFFFFFF])
def test_queries_fewer_than_counted_are_an_error(client: Client, count: int) -> None:
    client.greet()
    client.option(Option.STRUCTURED_REPLY)
    assert client.reply()[0] == Reply.ACK
    query = struct.pack(">I4sII4s", 4, b"disk", count, 4, b"base")
    client.option(Option.SET_META_CONTEXT, query)
    assert client.reply()[0] == Reply.ERR_INVALID


def test_requests_that_are_wrong_are_errors_and_the_next_works(client: Client) -> None:
    client.go()
    for command, offset, length, flags in (
        (Command.READ, SIZE - 1, 2, 0), (Command.READ, (1 << 64) - 1, 1, 0),
        (Command.READ, 0, 0xFFFFFFFF, 0), (Command.READ, 0, 1, 0x8000), (99, 0, 0, 0),
        (Command.BLOCK_STATUS, 0, 512, 0), (Command.TRIM, SIZE, 1, 0),
    ):  # fmt: skip
        client.request(command, offset, length, flags)
        assert client.answer() != 0
    client.request(Command.WRITE, SIZE - 1, 70_000)
    client.send(bytes(70_000))
    assert client.answer() != 0
    client.request(Command.READ, 0, 4)
    assert client.answer() == 0
    assert client.receive(4) == b"disk"


@pytest.mark.parametrize(
    "data",
    [
        REQUEST.pack(0xDEADBEEF, 0, Command.READ, 1, 0, 1),
        REQUEST.pack(REQUEST_MAGIC, 0, Command.WRITE, 1, 0, 0xFFFFFFFF),
        REQUEST.pack(REQUEST_MAGIC, 0, Command.WRITE, 1, 0, 1 << 20) + b"half",
        REQUEST.pack(REQUEST_MAGIC, 0, Command.READ, 1, 0, 1)[:20],
    ],
    ids=["magic", "write of 4 GiB", "half a write", "half a request"],
)
def test_request_that_cannot_be_followed_ends_the_connection(client: Client, data: bytes) -> None:
    client.go()
    client.send(data)
    assert client.is_dropped()


def test_client_that_takes_no_answer_is_dropped(client: Client) -> None:
    client.go()

    def ask_and_not_listen() -> None:
        for _ in range(1000):
            client.request(Command.READ, 0, SIZE)
            threading.Event().wait(0.01)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        ask_and_not_listen()


def test_clients_over_the_limit_are_turned_away_and_room_comes_back(server: Server) -> None:
    first, second, third = Client(server), Client(server), Client(server)
    assert third.is_dropped()
    first.go()
    first.request(Command.DISC, 0, 0)
    assert first.is_dropped()
    second.socket.close()
    server.wait(once=True)
    fourth = Client(server)
    fourth.go()
    for client in (first, third, fourth):
        client.socket.close()


def test_nothing_is_left_of_clients_and_servers(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SIZE))

    def once() -> None:
        with open_image(path) as image, Server({"disk": Export("disk", image)}) as server:
            server.listen_unix(tmp_path / "s")
            for leave in (b"", OPTION_MAGIC):
                client = Client(server)
                client.greet()
                client.send(leave)
                client.socket.close()
            with NbdFile(f"nbd+unix:///?socket={tmp_path / 's'}", readonly=False) as file:
                file.write(0, b"x")
            client = Client(server)
            client.go()
        client.socket.close()

    once()
    before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for _ in range(5):
        once()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


# Servers that lie to our client.


GREETING = INIT_MAGIC + OPTION_MAGIC + struct.pack(">H", 3)
DISK_INFO = struct.pack(">HQH", 0, SIZE, 1)


def option_reply(option: int, kind: int, data: bytes = b"", length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, size) + data


AGREED = (
    GREETING
    + option_reply(Option.STRUCTURED_REPLY, Reply.ACK)
    + option_reply(Option.SET_META_CONTEXT, Reply.META_CONTEXT, b"\0\0\0\7base:allocation")
    + option_reply(Option.SET_META_CONTEXT, Reply.ACK)
    + option_reply(Option.GO, Reply.INFO, DISK_INFO)
    + option_reply(Option.GO, Reply.ACK)
)


def chunk(
    kind: int, body: bytes, *, cookie: int = 1, flags: int = 1, length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    return CHUNK.pack(CHUNK_MAGIC, flags, kind, cookie, size) + body


class Liar:
    """A server that says what it is told to, whatever it is asked, and then leaves or stalls."""

    def __init__(self, path: Path, said: bytes, *, stays: bool = False) -> None:
        self.url = f"nbd+unix:///disk?socket={path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._said, self._stays = said, stays
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        with connection:
            connection.sendall(self._said)
            if not self._stays:
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    def __enter__(self) -> Liar:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


HANDSHAKE_LIES = [
    (b"", "connection ended"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "this is no NBD server"),
    (INIT_MAGIC + bytes(200), "protocol before 2011"),
    (INIT_MAGIC + OPTION_MAGIC + b"\0\0", "lacks the fixed newstyle"),
    (GREETING + bytes(20), "does not fit STRUCTURED_REPLY"),
    (GREETING + option_reply(Option.GO, Reply.ACK), "does not fit STRUCTURED_REPLY"),
    (GREETING + option_reply(Option.STRUCTURED_REPLY, Reply.ACK, length=1 << 31), "does not fit"),
    (GREETING + option_reply(Option.STRUCTURED_REPLY, Reply.INFO) * 1001, "more than 1000 replies"),
    (
        GREETING
        + option_reply(Option.STRUCTURED_REPLY, Reply.ERR_UNSUP)
        + option_reply(Option.GO, Reply.ERR_UNKNOWN, b"bad\nname"),
        "there is no export disk",
    ),
    (
        GREETING
        + option_reply(Option.STRUCTURED_REPLY, Reply.ERR_UNSUP)
        + option_reply(Option.GO, Reply.ACK),
        "does not say how large",
    ),
    (
        GREETING
        + option_reply(Option.STRUCTURED_REPLY, Reply.ERR_UNSUP)
        + option_reply(Option.GO, Reply.INFO, struct.pack(">HQH", 0, 1 << 63, 1))
        + option_reply(Option.GO, Reply.ACK),
        "a disk of 9223372036854775808 bytes",
    ),
    (
        GREETING
        + option_reply(Option.STRUCTURED_REPLY, Reply.ERR_UNSUP)
        + option_reply(Option.GO, Reply.INFO, DISK_INFO)
        + option_reply(Option.GO, Reply.INFO, struct.pack(">HIII", 3, 3, 4096, 1 << 20))
        + option_reply(Option.GO, Reply.ACK),
        "blocks of 3 to",
    ),
]


@pytest.mark.parametrize(("said", "message"), HANDSHAKE_LIES)
def test_server_that_lies_in_the_handshake_is_an_error(
    said: bytes, message: str, tmp_path: Path
) -> None:
    with Liar(tmp_path / "s", said) as liar, pytest.raises(OstlerError) as caught:
        NbdFile(liar.url, readonly=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def data(at: int, content: bytes) -> bytes:
    return struct.pack(">Q", at) + content


READ_LIES = [
    (b"", "connection ended"),
    (bytes(40), "reply magic 0x0"),
    (SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, 1) + bytes(64), "a simple reply to a read"),
    (SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 5, 1), "read failed: Input/output error"),
    (chunk(Chunk.OFFSET_DATA, data(0, bytes(64)), cookie=2), "cookie 2"),
    (chunk(Chunk.OFFSET_DATA, data(0, bytes(63))), "1 bytes are missing"),
    (chunk(Chunk.OFFSET_DATA, data(1, bytes(64))), "64 bytes at 1 were not asked for"),
    (chunk(Chunk.OFFSET_DATA, data(1 << 63, bytes(64))), "were not asked for"),
    (chunk(Chunk.OFFSET_DATA, b"", length=0xFFFFFFFF), "4294967295 bytes"),
    (chunk(Chunk.OFFSET_DATA, b"", length=32 << 20), "were not asked for|connection ended"),
    (chunk(Chunk.OFFSET_HOLE, struct.pack(">QI", 0, 0xFFFFFFFF)), "were not asked for"),
    (chunk(Chunk.OFFSET_HOLE, bytes(13)), "chunk 2 of 13 bytes"),
    (chunk(Chunk.BLOCK_STATUS, bytes(12)), "chunk 5 of 12 bytes"),
    (chunk(Chunk.NONE, b"", flags=0) * 10, "an empty chunk"),
    (chunk(Chunk.NONE, b""), "64 bytes are missing"),
    (chunk(Chunk.ERROR, b"\0"), "an error of 1 bytes"),
    (chunk(Chunk.ERROR, struct.pack(">IH3s", 28, 3, b"ful")), "read failed: ful"),
    (chunk(Chunk.ERROR, struct.pack(">IH3s", 28, 9000, b"ful")), "read failed: ful"),
    (chunk(Chunk.OFFSET_DATA, data(0, b"x"), flags=0) * (1 << 16), "more than 65536"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "message"), READ_LIES)
def test_server_that_lies_about_a_read_is_an_error(
    said: bytes, message: str, tmp_path: Path
) -> None:
    with (
        Liar(tmp_path / "s", AGREED + said) as liar,
        NbdFile(liar.url, readonly=True) as file,
        pytest.raises(HostError, match=message),
    ):
        file.read(0, 64)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (struct.pack(">I", 7), "a block status of 4 bytes"),
        (struct.pack(">III", 7, 0, 0), "a block status of nothing"),
        (struct.pack(">III", 9, 512, 0), "a block status of nothing"),
        (struct.pack(">III3s", 7, 512, 0, b"odd"), "a block status of 15 bytes"),
    ],
)
def test_server_that_lies_about_extents_is_an_error(
    body: bytes, message: str, tmp_path: Path
) -> None:
    with (
        Liar(tmp_path / "s", AGREED + chunk(Chunk.BLOCK_STATUS, body)) as liar,
        NbdFile(liar.url, readonly=True) as file,
        pytest.raises(HostError, match=message),
    ):
        list(file.extents(0, SIZE))


def test_server_that_stalls_is_an_error_in_time(tmp_path: Path) -> None:
    with Liar(tmp_path / "s", AGREED, stays=True) as liar:
        file = NbdFile(liar.url, readonly=True, answer_s=0.2)
        with pytest.raises(HostError, match=r"silent for 0\.2 s"):
            file.read(0, 64)
        file.close()


def test_server_that_is_not_there_is_an_error_with_its_address(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"cannot connect: No such file.*is the server running"):
        open_image(f"nbd+unix:///?socket={tmp_path / 'none'}")


@pytest.mark.parametrize(
    "url",
    [
        "nbd://", "nbd:///export", "nbd://host:port/", "nbd://host:99999/", "nbd+unix:///x",
        "nbd+unix://host/x?socket=/s", "nbd://host/?socket=/s", "nbd://host/?colour=red",
        "nbd://host/" + "x" * 5000, "nbd://[::1/x",
    ],
)  # fmt: skip
def test_address_that_is_none_is_an_error_in_one_line(url: str) -> None:
    with pytest.raises(DiskError) as caught:
        open_image(url)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 5600

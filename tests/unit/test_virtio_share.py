"""9P2000.L: the protocol, and that nothing leads out of the shared directory."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostler.config import VirtioShareConfig
from ostler.devices.virtio.p9.server import MAX_ATTRIBUTES, MAX_OPEN, NO_FID, Server
from ostler.devices.virtio.p9.tree import Tree
from ostler.devices.virtio.p9.wire import HEADER, T, text
from ostler.devices.virtio.share import VirtioShare
from ostler.errors import ConfigError
from ostler.testing import check_device
from ostler.testing.pci import FakeWorkers

ROOM = 8192


class Refused(Exception):
    """The server's error number."""


class Client:
    """Speaks to a server; fid 0 is the top."""

    def __init__(self, root: Path, *, readonly: bool = False) -> None:
        self.tree = Tree(root, readonly=readonly)
        self.server = Server(self.tree)
        self.ask(T.VERSION, struct.pack("<I", ROOM) + text(b"9P2000.L"))
        self.ask(T.ATTACH, struct.pack("<II", 0, NO_FID) + text(b"u") + text(b"") + bytes(4))
        self.next = 1

    def ask(self, kind: int, body: bytes) -> bytes:
        request = HEADER.pack(HEADER.size + len(body), kind, 7) + body
        answer = self.server.answer(request, ROOM)
        size, answered, tag = HEADER.unpack_from(answer)
        assert (size, tag) == (len(answer), 7)
        if answered == T.LERROR + 1:
            raise Refused(struct.unpack("<I", answer[7:])[0])
        assert answered == kind + 1
        return answer[7:]

    def walk(self, *names: str) -> int:
        fid, self.next = self.next, self.next + 1
        parts = b"".join(text(name.encode()) for name in names)
        answer = self.ask(T.WALK, struct.pack("<IIH", 0, fid, len(names)) + parts)
        if struct.unpack_from("<H", answer)[0] < len(names):
            raise Refused(errno.ENOENT)
        return fid

    def open(self, *names: str, flags: int = 0) -> int:
        fid = self.walk(*names)
        self.ask(T.LOPEN, struct.pack("<II", fid, flags))
        return fid

    def read(self, fid: int, count: int = 4096, offset: int = 0) -> bytes:
        return self.ask(T.READ, struct.pack("<IQI", fid, offset, count))[4:]

    def names(self, fid: int) -> list[str]:
        offset, names = 0, []
        while listed := self.ask(T.READDIR, struct.pack("<IQI", fid, offset, 200))[4:]:
            at = 0
            while at < len(listed):
                offset, _, length = struct.unpack_from("<QBH", listed, at + 13)
                names.append(listed[at + 24 : at + 24 + length].decode())
                at += 24 + length
        return names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("not shared")
    root = tmp_path / "shared"
    root.mkdir()
    (root / "hello").write_text("hello")
    (root / "folder").mkdir()
    for number in range(40):
        (root / "folder" / f"file-{number:02}").write_text(str(number))
    (root / "out").symlink_to("../secret")
    (root / "away").symlink_to(tmp_path)
    return root


@pytest.fixture
def client(root: Path) -> Iterator[Client]:
    client = Client(root)
    yield client
    client.server.close()
    client.tree.close()


def test_files_are_read_written_and_listed_in_pieces(client: Client, root: Path) -> None:
    assert client.read(client.open("hello")) == b"hello"
    assert client.read(client.open("hello"), 3, 2) == b"llo"
    fid = client.open("hello", flags=os.O_RDWR)
    client.ask(T.WRITE, struct.pack("<IQI", fid, 5, 6) + b" there")
    assert (root / "hello").read_text() == "hello there"
    names = client.names(client.open("folder"))
    assert names[:2] == [".", ".."]
    assert sorted(names[2:]) == [f"file-{number:02}" for number in range(40)]


def test_file_beyond_four_gibibytes_is_written_and_read_where_it_should(
    client: Client, root: Path
) -> None:
    fid, far = client.open("hello", flags=os.O_RDWR), 5 << 30
    client.ask(T.WRITE, struct.pack("<IQI", fid, far, 3) + b"far")
    assert (root / "hello").stat().st_size == far + 3
    assert client.read(fid, 16, far - 1) == b"\0far"
    assert client.read(fid, 16, far + 3) == b""
    for offset in (1 << 63, (1 << 64) - 1):
        with pytest.raises(Refused):
            client.read(fid, 16, offset)


@pytest.mark.parametrize(("wanted", "given"), [(4096, 4096), (8192, 8192), (1 << 30, 512 << 10)])
def test_messages_are_as_long_as_both_sides_want(client: Client, wanted: int, given: int) -> None:
    answer = client.ask(T.VERSION, struct.pack("<I", wanted) + text(b"9P2000.L"))
    assert struct.unpack_from("<I", answer) == (given,)
    with pytest.raises(Refused, match=str(errno.EMSGSIZE)):
        client.ask(T.VERSION, struct.pack("<I", 4095) + text(b"9P2000.L"))


def set_attribute(client: Client, file: str, name: bytes, value: bytes, size: int = -1) -> None:
    fid = client.walk(file)
    wanted = len(value) if size < 0 else size
    client.ask(T.XATTRCREATE, struct.pack("<I", fid) + text(name) + struct.pack("<QI", wanted, 0))
    for at in range(0, len(value), 1000):
        piece = value[at : at + 1000]
        client.ask(T.WRITE, struct.pack("<IQI", fid, at, len(piece)) + piece)
    client.ask(T.CLUNK, struct.pack("<I", fid))


def attribute(client: Client, file: str, name: bytes) -> bytes:
    fid, client.next = client.next, client.next + 1
    asked = struct.pack("<II", client.walk(file), fid) + text(name)
    (size,) = struct.unpack("<Q", client.ask(T.XATTRWALK, asked))
    value = client.read(fid)
    assert len(value) == size
    client.ask(T.CLUNK, struct.pack("<I", fid))
    return value


@pytest.fixture
def attributes(root: Path) -> None:
    try:
        os.setxattr(root / "hello", b"user.host", b"1")
    except OSError:
        pytest.skip("the file system has no extended attributes")


@pytest.mark.usefixtures("attributes")
def test_attributes_of_users_are_read_written_listed_and_removed(
    client: Client, root: Path
) -> None:
    value = bytes(range(256)) * 8
    set_attribute(client, "hello", b"user.guest", value)
    assert os.getxattr(root / "hello", b"user.guest") == value
    assert attribute(client, "hello", b"user.guest") == value
    assert attribute(client, "hello", b"user.host") == b"1"
    names = attribute(client, "hello", b"").split(b"\0")
    assert sorted(names) == [b"", b"user.guest", b"user.host"]
    set_attribute(client, "hello", b"user.guest", b"")
    assert os.listxattr(root / "hello") == ["user.host"]
    with pytest.raises(Refused, match=str(errno.ENODATA)):
        attribute(client, "hello", b"user.guest")
    # Directories have them, too.
    set_attribute(client, "folder", b"user.guest", b"x")
    assert os.getxattr(root / "folder", b"user.guest") == b"x"


@pytest.mark.usefixtures("attributes")
def test_attributes_that_mean_something_on_the_host_are_none_of_the_guests(
    client: Client, root: Path
) -> None:
    for name in (b"security.capability", b"trusted.a", b"system.posix_acl_access", b"user"):
        with pytest.raises(Refused, match=str(errno.EOPNOTSUPP)):
            set_attribute(client, "hello", name, b"x")
        with pytest.raises(Refused, match=str(errno.EOPNOTSUPP)):
            attribute(client, "hello", name)
    # Nor those of what a link leads to.
    with pytest.raises(Refused, match=str(errno.EOPNOTSUPP)):
        attribute(client, "out", b"user.host")
    with pytest.raises(Refused, match=str(errno.EROFS)):
        set_attribute(Client(root, readonly=True), "hello", b"user.guest", b"x")
    assert os.listxattr(root / "hello") == ["user.host"]


@pytest.mark.usefixtures("attributes")
def test_attributes_are_bounded_and_set_as_a_whole_or_not_at_all(
    client: Client, root: Path
) -> None:
    with pytest.raises(Refused, match=str(errno.E2BIG)):
        set_attribute(client, "hello", b"user.guest", b"", size=65_537)
    for value, size in ((b"xyz", 2), (b"xyz", 4)):
        with pytest.raises(Refused, match=str(errno.EINVAL)):
            set_attribute(client, "hello", b"user.guest", value, size)
    asked = struct.pack("<I", client.walk("hello")) + text(b"user.guest")
    with pytest.raises(Refused, match=str(errno.EINVAL)):
        client.ask(T.XATTRCREATE, asked + struct.pack("<QI", 1, 3))
    client.server.close()
    client.ask(T.ATTACH, struct.pack("<II", 0, NO_FID) + text(b"u") + text(b"") + bytes(4))
    for fid in range(100, 100 + MAX_ATTRIBUTES):
        client.ask(T.XATTRWALK, struct.pack("<II", 0, fid) + text(b""))
    with pytest.raises(Refused, match=str(errno.ENFILE)):
        client.ask(T.XATTRWALK, struct.pack("<II", 0, 99) + text(b""))
    assert os.listxattr(root / "hello") == ["user.host"]


def test_locks_are_the_guests_own(client: Client) -> None:
    fid = client.walk("hello")
    lock = struct.pack("<IBIQQI", fid, 1, 0, 0, 0, 1) + text(b"guest")
    assert client.ask(T.LOCK, lock) == b"\0"


def test_reply_without_room_is_an_error_as_long_as_there_is_room(client: Client) -> None:
    request = HEADER.pack(HEADER.size + 12, T.GETATTR, 7) + struct.pack("<IQ", 0, 0x7FF)
    for room in (0, 5, 11, 64):
        answer = client.server.answer(request, room)
        assert len(answer) == min(room, 11)
        if room >= 11:
            assert HEADER.unpack_from(answer) == (11, T.LERROR + 1, 7)
            assert struct.unpack_from("<I", answer, 7) == (errno.EMSGSIZE,)


def test_files_are_made_linked_renamed_and_removed(client: Client, root: Path) -> None:
    top = client.walk()
    create = text(b"new") + struct.pack("<III", os.O_RDWR, 0o6755, 0)
    client.ask(T.LCREATE, struct.pack("<I", top) + create)
    assert (root / "new").stat().st_mode & 0o7777 == 0o755, "no set-user-id"
    client.ask(T.MKDIR, struct.pack("<I", 0) + text(b"deep") + struct.pack("<II", 0o700, 0))
    client.ask(T.SYMLINK, struct.pack("<I", 0) + text(b"link") + text(b"/etc/passwd") + bytes(4))
    assert client.ask(T.READLINK, struct.pack("<I", client.walk("link"))) == text(b"/etc/passwd")
    inside = client.walk("folder", "file-01")
    rename = (text(b"folder"), text(b"moved"))
    client.ask(T.RENAMEAT, bytes(4) + rename[0] + bytes(4) + rename[1])
    client.ask(T.LOPEN, struct.pack("<II", inside, 0))
    assert client.read(inside) == b"1", "a fid follows the folder it is in"
    client.ask(T.LINK, struct.pack("<II", 0, client.walk("hello")) + text(b"again"))
    assert (root / "again").stat().st_nlink == 2
    client.ask(T.UNLINKAT, bytes(4) + text(b"again") + bytes(4))
    client.ask(T.UNLINKAT, bytes(4) + text(b"deep") + struct.pack("<I", 0x200))
    client.ask(T.REMOVE, struct.pack("<I", client.walk("link")))
    assert sorted(os.listdir(root)) == ["away", "hello", "moved", "new", "out"]


def test_attributes_are_told_and_changed(client: Client, root: Path) -> None:
    fid = client.walk("hello")
    attributes = client.ask(T.GETATTR, struct.pack("<IQ", fid, 0x7FF))
    found = (root / "hello").stat()
    assert struct.unpack_from("<I", attributes, 21)[0] == found.st_mode
    assert struct.unpack_from("<3Q", attributes, 33) == (1, found.st_rdev, 5)
    change = struct.pack("<IIIIIQQQQQ", fid, 1 | 8 | 0x20 | 0x100, 0o4600, 0, 0, 2, 0, 0, 1000, 5)
    client.ask(T.SETATTR, change)
    found = (root / "hello").stat()
    assert (found.st_mode & 0o7777, found.st_size) == (0o600, 2)
    assert found.st_mtime_ns == 1000 * 10**9 + 5
    own = struct.pack("<IIIIIQQQQQ", fid, 2, 0, found.st_uid + 1, 0, 0, 0, 0, 0, 0)
    with pytest.raises(Refused, match=str(errno.EPERM)):
        client.ask(T.SETATTR, own)


@pytest.mark.parametrize(
    "names", [("..", "secret"), ("out",), ("away", "secret"), ("folder", "..", "..", "secret")]
)
def test_nothing_leads_out_of_the_directory(client: Client, names: tuple[str, ...]) -> None:
    with pytest.raises(Refused):
        client.read(client.open(*names))


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".", "x\0y", "/etc/passwd"])
def test_name_that_is_a_path_is_no_name(client: Client, name: str) -> None:
    with pytest.raises(Refused):
        client.walk(name)
    body = bytes(4) + text(name.encode()) + struct.pack("<II", 0o700, 0)
    with pytest.raises(Refused, match=str(errno.EINVAL)):
        client.ask(T.MKDIR, body)


def test_folder_replaced_by_a_link_behind_the_guests_back_is_not_followed(
    client: Client, root: Path, tmp_path: Path
) -> None:
    fid = client.walk("folder", "file-00")
    (root / "folder").rename(root / "gone")
    (root / "folder").symlink_to(tmp_path)
    (tmp_path / "file-00").write_text("outside")
    with pytest.raises(Refused, match=str(errno.ELOOP)):
        client.ask(T.LOPEN, struct.pack("<II", fid, 0))


def test_pipes_and_devices_are_neither_opened_nor_made(client: Client, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(Refused, match=str(errno.ENXIO)):
        client.open("pipe")
    top = client.walk()
    create = text(b"pipe") + struct.pack("<III", os.O_WRONLY, 0o600, 0)
    with pytest.raises(Refused, match=str(errno.EEXIST)):
        client.ask(T.LCREATE, struct.pack("<I", top) + create)
    node = text(b"null") + struct.pack("<IIII", 0o20666, 1, 3, 0)
    with pytest.raises(Refused, match=str(errno.EPERM)):
        client.ask(T.MKNOD, bytes(4) + node)


def test_share_read_only_refuses_every_change(root: Path) -> None:
    client = Client(root, readonly=True)
    assert client.read(client.open("hello")) == b"hello"
    for kind, body in (
        (T.LOPEN, struct.pack("<II", client.walk("hello"), os.O_WRONLY)),
        (T.LOPEN, struct.pack("<II", client.walk("hello"), os.O_TRUNC)),
        (
            T.LCREATE,
            struct.pack("<I", client.walk()) + text(b"n") + struct.pack("<III", 2, 0o600, 0),
        ),
        (T.MKDIR, bytes(4) + text(b"n") + struct.pack("<II", 0o700, 0)),
        (T.SYMLINK, bytes(4) + text(b"n") + text(b"t") + bytes(4)),
        (T.UNLINKAT, bytes(4) + text(b"hello") + bytes(4)),
        (T.RENAMEAT, bytes(4) + text(b"hello") + bytes(4) + text(b"n")),
        (T.LINK, struct.pack("<II", 0, client.walk("hello")) + text(b"n")),
        (T.SETATTR, struct.pack("<IIIIIQQQQQ", client.walk("hello"), 8, *[0] * 8)),
    ):
        with pytest.raises(Refused, match=str(errno.EROFS)):
            client.ask(kind, body)
    client.server.close()
    client.tree.close()


def test_open_files_are_limited(client: Client) -> None:
    for _ in range(MAX_OPEN):
        client.open("hello")
    with pytest.raises(Refused, match=str(errno.ENFILE)):
        client.open("hello")


def test_nonsense_is_answered_with_an_error_and_never_raises(client: Client, root: Path) -> None:
    chance = random.Random(9)
    kinds = [*T, 0, 255]
    for _ in range(20_000):
        body = bytes(chance.choice((0, 0, 0, 1, 2, chance.randrange(256))) for _ in range(40))
        size = chance.choice((HEADER.size + 40, 0, 5, 1 << 31))
        answer = client.server.answer(HEADER.pack(size, chance.choice(kinds), 1) + body, ROOM)
        assert HEADER.size <= len(answer) <= ROOM
        assert client.server.answer(body[: chance.randrange(8)], ROOM)
    assert (root.parent / "secret").read_text() == "not shared"


def test_device_conforms_and_tells_its_tag(root: Path) -> None:
    made: list[VirtioShare] = []

    def wire(machine: object) -> VirtioShare:
        made.append(VirtioShare(FakeWorkers(), root, "code"))
        return made[-1]

    check_device(wire, 16)
    assert made[0].config() == b"\x04\x00code"
    for device in made:
        device.close()


def test_share_without_a_tag_or_a_directory_is_refused(tmp_path: Path) -> None:
    for wrong, why in (
        ("dir", "write DIR:TAG"),
        ("dir:", "write DIR:TAG"),
        (f"d:{'t' * 32}", "31"),
    ):
        with pytest.raises(ConfigError, match=why):
            VirtioShareConfig.parse(wrong)
    assert VirtioShareConfig.parse("a:b:tag,readonly=on").path == Path("a:b")
    with pytest.raises(ConfigError, match="give a directory"):
        Tree(tmp_path / "absent")

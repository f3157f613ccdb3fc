"""LUKS against QEMU and cryptsetup, both ways, and headers that are damaged."""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import qemu_luks

from ostler.block import create_image, open_image
from ostler.block.crypto import luks1, luks2
from ostler.block.crypto.keys import merge_key, split_key
from ostler.block.crypto.secret import parse_secret, parse_secrets
from ostler.block.formats.luks import LuksImage
from ostler.block.source import MemorySource
from ostler.errors import ConfigError, DiskError

MIB = 1 << 20
SECRET = b"open sesame"
# A few of qemu-img's kinds: it measures its hashing for seconds at each creation. The others it
# reads when we have made them.
KINDS = [
    "", "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512",
    "cipher-alg=serpent-256,ivgen-alg=plain",
]  # fmt: skip
CRYPTSETUP_KINDS = [
    "", "--cipher aes-xts-plain64 --key-size 256", "--hash sha1", "--hash sha512",
    "--cipher aes-cbc-essiv:sha256 --key-size 256", "--cipher aes-cbc-plain64 --key-size 128",
    "--cipher aes-xts-plain",
]  # fmt: skip
CRYPTSETUP = ("cryptsetup", "-q", "--key-file")


def run(*command: object, check: bool = True) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


def secret_object(key_file: Path) -> tuple[str, str]:
    return "--object", f"secret,id=s,file={key_file}"


def image_options(path: Path) -> tuple[str, str]:
    return "--image-opts", f"driver=luks,key-secret=s,file.filename={path}"


def qemu_create(path: Path, key_file: Path, options: str, size: str) -> None:
    chosen = f"key-secret=s,iter-time=30{',' if options else ''}{options}"
    command = ("qemu-img", "create", "-q", "-f", "luks", *secret_object(key_file), "-o", chosen)
    qemu_luks.create((*command, path, size))


def qemu_io(path: Path, key_file: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    return run("qemu-io", *secret_object(key_file), *words, *image_options(path))


@pytest.mark.parametrize("options", KINDS, ids=lambda options: options or "default")
def test_image_of_qemu_is_read_and_written(options: str, tmp_path: Path, key_file: Path) -> None:
    path, raw = tmp_path / "disk.luks", tmp_path / "disk.raw"
    qemu_create(path, key_file, options, "3M")
    qemu_io(path, key_file, "write -P 7 0 3M", "write -P 9 1000k 700k")
    with open_image(path, secret=SECRET) as image:
        assert image.format == "luks"
        assert image.read(0, 3 * MIB) == (
            b"\7" * 1000 * 1024 + b"\x09" * 700 * 1024 + b"\7" * (3 * MIB - 1700 * 1024)
        )
        image.write(123_456, b"from ostler" * 1000)
        image.write_zeroes(2 * MIB + 7, 5000)
    run("qemu-img", "convert", *secret_object(key_file), *image_options(path), "-O", "raw", raw)
    with open_image(path, readonly=True, secret=SECRET) as image:
        assert image.read(0, 3 * MIB) == raw.read_bytes()
        assert b"from ostler" * 1000 in raw.read_bytes()


@pytest.mark.parametrize("options", CRYPTSETUP_KINDS)
def test_image_of_cryptsetup_is_read_as_qemu_reads_it(
    options: str, tmp_path: Path, key_file: Path
) -> None:
    path, raw = tmp_path / "disk.luks", tmp_path / "disk.raw"
    path.write_bytes(random.Random(3).randbytes(3 * MIB))
    quick = ("--type", "luks1", "--pbkdf-force-iterations", 1000)
    run(*CRYPTSETUP, key_file, "luksFormat", *quick, *options.split(), path)
    run("qemu-img", "convert", *secret_object(key_file), *image_options(path), "-O", "raw", raw)
    with open_image(path, readonly=True, secret=SECRET) as image:
        assert image.read(0, image.size_bytes) == raw.read_bytes()


OURS = [
    {}, {"cipher_alg": "aes-128"}, {"hash_alg": "sha512"},
    {"hash_alg": "sha1", "ivgen_alg": "plain"}, {"cipher_mode": "cbc", "ivgen_alg": "essiv"},
    {"cipher_mode": "cbc", "cipher_alg": "aes-192"}, {"cipher_alg": "serpent-256"},
    {"cipher_alg": "twofish-128"}, {"cipher_alg": "twofish-256", "cipher_mode": "cbc"},
]  # fmt: skip


@pytest.mark.parametrize("options", OURS, ids=str)
def test_image_of_ours_is_opened_by_cryptsetup_and_qemu(
    options: dict[str, str], tmp_path: Path, key_file: Path
) -> None:
    path = tmp_path / "disk.luks"
    create_image(path, 2 * MIB, format="luks", secret=SECRET, iter_time=30, **options)
    content = random.Random(2).randbytes(2 * MIB)
    with open_image(path, secret=SECRET) as image:
        image.write(0, content)
        image.flush()
    assert "Payload offset:" in run("cryptsetup", "luksDump", path)
    if options.get("cipher_alg", "aes").startswith("aes"):
        # Other ciphers cryptsetup leaves to the kernel, which may not have them.
        run(*CRYPTSETUP, key_file, "luksOpen", "--test-passphrase", path)
        wrong = tmp_path / "wrong"
        wrong.write_bytes(b"wrong")
        said = run(*CRYPTSETUP, wrong, "luksOpen", "--test-passphrase", path, check=False)
        assert "No key available" in said
    if options.get("cipher_alg") != "aes-192":
        # QEMU asserts that a split key is whole sectors, which 4000 times 24 bytes are not.
        raw = tmp_path / "disk.raw"
        run("qemu-img", "convert", *secret_object(key_file), *image_options(path), "-O", "raw", raw)
        assert raw.read_bytes() == content


def test_facts_are_those_that_qemu_shows(tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "disk.luks"
    options = {"cipher_mode": "cbc", "ivgen_alg": "essiv"}
    create_image(path, MIB, format="luks", secret=SECRET, iter_time=30, **options)
    told = run("qemu-img", "info", "--output=json", *secret_object(key_file), *image_options(path))
    with open_image(path, readonly=True, secret=SECRET) as image:
        assert isinstance(image, LuksImage)
        theirs = json.loads(told)["format-specific"]["data"]
        assert image.format_specific() == {name: theirs[name] for name in image.format_specific()}


def test_key_added_opens_and_key_erased_does_not(tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "disk.luks"
    create_image(path, MIB, format="luks", secret=b"first", iter_time=10)
    with open_image(path, secret=b"first") as image:
        assert isinstance(image, LuksImage)
        image.write(0, b"kept")
        image.add_key(SECRET, milliseconds=10)
        image.erase_key(0)
        with pytest.raises(DiskError, match="key slot 1 is the only one"):
            image.erase_key(1)
        with pytest.raises(DiskError, match="key slot 0 is not in use"):
            image.erase_key(0)
    run(*CRYPTSETUP, key_file, "luksOpen", "--test-passphrase", path)
    with open_image(path, secret=SECRET) as image:
        assert image.read(0, 4) == b"kept"
    with pytest.raises(DiskError, match="opens no key slot"):
        open_image(path, secret=b"first")


def test_resize_gives_zeroes(tmp_path: Path) -> None:
    path = tmp_path / "disk.luks"
    create_image(path, MIB, format="luks", secret=SECRET, iter_time=1)
    with open_image(path, secret=SECRET) as image:
        assert isinstance(image, LuksImage)
        image.resize(2 * MIB)
        assert image.read(MIB, MIB) == bytes(MIB)
    with open_image(path, secret=SECRET) as image:
        assert image.size_bytes == 2 * MIB


# LUKS2.

LUKS2_KINDS = [
    "--pbkdf pbkdf2 --pbkdf-force-iterations 1000",
    "--pbkdf argon2id --pbkdf-memory 64 --pbkdf-force-iterations 4 --pbkdf-parallel 2",
    "--pbkdf argon2i --pbkdf-memory 64 --pbkdf-force-iterations 4 --pbkdf-parallel 1",
    "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --cipher aes-cbc-essiv:sha256 --key-size 256",
    "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --hash sha512 --key-size 256",
    "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 4096",
]


def luks2_image(path: Path, key_file: Path, options: str) -> None:
    with path.open("wb") as file:
        file.truncate(20 * MIB)
    run(*CRYPTSETUP, key_file, "luksFormat", "--type", "luks2", *options.split(), path)


@pytest.mark.parametrize("options", LUKS2_KINDS)
def test_luks2_of_cryptsetup_gives_the_key_that_cryptsetup_has(
    options: str, tmp_path: Path, key_file: Path
) -> None:
    path, key = tmp_path / "disk.luks", tmp_path / "key"
    luks2_image(path, key_file, options)
    dump = ("luksDump", "--dump-volume-key", "--volume-key-file", key)
    run(*CRYPTSETUP, key_file, *dump, path)
    source = MemorySource(path.read_bytes())
    header = luks2.parse(source)
    assert luks2.unlock(source, header, SECRET) == key.read_bytes()
    with pytest.raises(DiskError, match="opens no key slot"):
        luks2.unlock(source, header, b"wrong")
    with open_image(path, readonly=True, secret=SECRET) as image:
        assert image.size_bytes == 4 * MIB
        # What its sectors say is what the cipher makes of zeroes.
        spec, sector = header.segment.spec, header.segment.sector_bytes
        cipher = spec.cipher("disk", key.read_bytes(), sector)
        clear = b"".join(
            cipher.decrypt(bytes(sector), at // 512) for at in range(0, 64 << 10, sector)
        )
        assert image.read(0, 64 << 10) == clear
        assert image.read(1000, 100) == clear[1000:1100]
    with pytest.raises(DiskError, match="LUKS2 images can be read, not written"):
        open_image(path, secret=SECRET)


def test_luks2_header_damaged_gives_way_to_the_other(tmp_path: Path, key_file: Path) -> None:
    path = tmp_path / "disk.luks"
    luks2_image(path, key_file, LUKS2_KINDS[0])
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    assert (
        luks2.parse(MemorySource(content)).uuid == luks2.parse(MemorySource(path.read_bytes())).uuid
    )
    content[(16 << 10) + 5000] ^= 1
    with pytest.raises(DiskError, match="LUKS2 headers are all invalid"):
        luks2.parse(MemorySource(content))


def test_luks2_json_that_wants_too_much_is_refused_by_name() -> None:
    source = MemorySource(bytes(64 << 10))
    kdf = {"type": "argon2id", "salt": "AAAA", "time": 1, "memory": 1 << 30, "cpus": 1}
    area = {"key_size": 64, "encryption": "aes-xts-plain64", "offset": "32768"}
    slot = {"type": "luks2", "key_size": 64, "area": area, "kdf": kdf,
            "af": {"stripes": 4000, "hash": "sha256"}}  # fmt: skip
    segment = {"type": "crypt", "offset": "0", "size": "dynamic", "iv_tweak": "0",
               "encryption": "aes-xts-plain64", "sector_size": 512}  # fmt: skip
    digest = {"type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256",
              "iterations": 1000, "salt": "AAAA", "digest": "A" * 44}  # fmt: skip

    def understood(**changes: object) -> luks2.Luks2Header:
        tree = {
            "config": {},
            "segments": {"0": segment},
            "keyslots": {"0": slot},
            "digests": {"0": digest},
        }
        return luks2._understand(source, "uuid", json.dumps(tree | changes).encode())

    with pytest.raises(DiskError, match="keyslot 0 wants 1 passes, 1073741824 KiB"):
        luks2.unlock(source, understood(), SECRET)
    with pytest.raises(DiskError, match="requirement 'online-reencrypt'"):
        understood(config={"requirements": {"mandatory": ["online-reencrypt"]}})
    with pytest.raises(DiskError, match="segment of type 'linear'"):
        understood(segments={"0": segment | {"type": "linear"}})
    with pytest.raises(DiskError, match="LUKS2 JSON is not as it has to be"):
        understood(segments={})
    with pytest.raises(DiskError, match="LUKS2 JSON is not as it has to be"):
        luks2._understand(source, "uuid", b"[" * 100_000)


# Damage.


@cache
def sound() -> bytes:
    with TemporaryDirectory() as directory:
        path = Path(directory, "disk.luks")
        create_image(path, 65536, format="luks", secret=SECRET, iter_time=1)
        return path.read_bytes()


def u32(at: int, value: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(">I", content, at, value)


def text(at: int, value: bytes) -> Callable[[bytearray], None]:
    return lambda content: content.__setitem__(slice(at, at + 32), value.ljust(32, b"\0"))


SLOT = 208
DAMAGES: list[tuple[str, Callable[[bytearray], None]]] = [
    ("LUKS magic or version is .*, 9", lambda content: struct.pack_into(">H", content, 6, 9)),
    ("cipher 'rot13' is not supported; there is: aes", text(8, b"rot13")),
    ("cipher mode 'ctr' is not supported", text(40, b"ctr-plain64")),
    ("IV generator 'null' is not supported", text(40, b"xts-null")),
    ("only essiv has a hash", text(40, b"cbc-essiv")),
    ("LUKS hash-spec 'whirlpool' is not supported", text(72, b"whirlpool")),
    ("hash-spec is b'\\\\xff", text(72, b"\xff")),
    ("key-bytes is 4294967295", u32(108, 0xFFFFFFFF)),
    ("a key of 40 bytes does not fit", u32(108, 80)),
    ("mk-digest-iterations is 0", u32(164, 0)),
    ("mk-digest-iterations is 4294967295", u32(164, 0xFFFFFFFF)),
    ("key slot 0 has state 0x7", u32(SLOT, 7)),
    ("key slot 0's iterations is 4294967295", u32(SLOT + 4, 0xFFFFFFFF)),
    ("key slot 0 lies at 0x0", u32(SLOT + 40, 0)),
    ("key slot 0 lies at 0x1ffffffe000", u32(SLOT + 40, 0xFFFFFFF0)),
    ("key slot 0 has 4294967295 stripes", u32(SLOT + 44, 0xFFFFFFFF)),
    ("key slot 0 has 0 stripes", u32(SLOT + 44, 0)),
    ("payload-offset 0x1fffffffe00 is beyond", u32(104, 0xFFFFFFFF)),
    ("opens no key slot", u32(SLOT + 8, 1)),
    ("LUKS header at 0x0 is beyond", lambda content: content.__delitem__(slice(500, None))),
    ("key material at 0x1000 is beyond", lambda content: content.__delitem__(slice(9000, None))),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGES)
def test_damage_is_an_error_that_names_the_field(
    message: str, damage: Callable[[bytearray], None], tmp_path: Path
) -> None:
    content, path = bytearray(sound()), tmp_path / "disk.luks"
    damage(content)
    path.write_bytes(content)
    with pytest.raises(DiskError) as caught:
        open_image(path, format="luks", readonly=True, secret=SECRET)
    assert re.search(message, str(caught.value)), caught.value


def test_slots_that_overlap_are_refused(tmp_path: Path) -> None:
    content = bytearray(sound())
    content[SLOT + 48 : SLOT + 96] = content[SLOT : SLOT + 48]
    with pytest.raises(DiskError, match="key slot 1 overlaps key slot 0"):
        luks1.parse(MemorySource(content))


def test_image_without_a_passphrase_says_how_to_give_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.luks"
    path.write_bytes(sound())
    with pytest.raises(DiskError, match="needs a passphrase; in Python give secret="):
        open_image(path)


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
@pytest.mark.parametrize("length", [16, 32, 64, 77])
def test_split_key_is_merged_again(hash_name: str, length: int) -> None:
    key = random.Random(length).randbytes(length)
    split = split_key(hash_name, key, 50)
    assert len(split) == 50 * length
    assert key not in split
    assert merge_key(hash_name, split, 50) == key


# Secrets.


def test_secret_is_a_files_content(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"cGFzcw==\n")
    assert parse_secret(f"secret,id=a,file={path}") == ("a", b"cGFzcw==\n")
    assert parse_secret(f"secret,id=a,file={path},format=base64") == ("a", b"pass")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("secret,id=a,data=hunter2", "data= shows the passphrase"),
        ("secret,id=a", "give id=NAME and file=PATH"),
        ("secret,id=a,file=/nonexistent", "cannot read the passphrase"),
        ("secret,id=a,file=/dev/null", "a passphrase is 1 to"),
        ("secret,id=a,file=/dev/null,colour=red", "no 'colour'"),
        ("iothread,id=a", "no object 'iothread'"),
    ],
)
def test_secret_that_is_wrong_is_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_secret(given)
    assert "hunter2" not in message


def test_secrets_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match="two with id=a"):
        parse_secrets([f"secret,id=a,file={path}"] * 2)

"""What the image verbs make of input that people get wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from qcow2_oracle import needs_qemu, qemu

from ostler.block import open_image
from ostler.cli import invoke

Run = Callable[..., str]
MIB = 1 << 20


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`ostler image ...` in a directory of its own, which has to end with `code`: what it says."""

    def run(text: str, code: int = 0) -> str:
        assert invoke(["image", *text.split()]) == code, capsys.readouterr()
        captured = capsys.readouterr()
        return captured.out + captured.err

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    ("size", "bytes_there"),
    [("1.5G", 3 << 29), ("0.5k", 512), ("0", 0), ("1000b", 1024), ("0x200000", 2 * MIB)],
)
def test_size_is_read_as_qemu_img_reads_it(size: str, bytes_there: int, run: Run) -> None:
    run(f"create disk.qcow2 {size}")
    with open_image("disk.qcow2", readonly=True) as image:
        assert image.size_bytes == bytes_there


@pytest.mark.parametrize("size", ["-5G", "-0.5G", "1.5", "1e3", "5X", "G"])
def test_size_that_is_none_is_refused_in_one_line(size: str, run: Run, tmp_path: Path) -> None:
    said = run(f"create disk.qcow2 {size}", code=2)
    assert size in said
    assert said.count("\n") == 1
    assert not (tmp_path / "disk.qcow2").exists()


def test_resize_takes_a_minus_as_it_is(run: Run) -> None:
    run("create disk.qcow2 1G")
    assert "--shrink" in run("resize disk.qcow2 -256M", code=2)
    run("resize --shrink disk.qcow2 -256M")
    run("resize disk.qcow2 +0.5G")
    with open_image("disk.qcow2", readonly=True) as image:
        assert image.size_bytes == 1280 * MIB


def test_create_replaces_a_file_but_none_that_is_in_use(run: Run, tmp_path: Path) -> None:
    run("create disk.qcow2 1M")
    run("create disk.qcow2 2M")
    before = (tmp_path / "disk.qcow2").read_bytes()
    with open_image(tmp_path / "disk.qcow2"):
        assert "in use" in run("create disk.qcow2 3M", code=2)
    assert (tmp_path / "disk.qcow2").read_bytes() == before


def test_file_of_odd_size_can_be_read_only(run: Run, tmp_path: Path) -> None:
    content = os.urandom(1000)
    (tmp_path / "odd").write_bytes(content)
    assert "virtual size: 1 KiB (1024 bytes)" in run("info odd")
    run("convert -O raw odd copy")
    assert (tmp_path / "copy").read_bytes() == content + bytes(24)
    said = run("resize odd 2k", code=2)
    assert "no disk image of a format that is known" in said
    assert "truncate" not in said


def test_unknown_format_is_told_with_the_file(run: Run) -> None:
    run("create disk.qcow2 1M")
    assert "disk.qcow2: there is no disk image format 'qcow3'" in run("info -f qcow3 disk.qcow2", 2)


def test_options_are_listed_by_what_is_written(run: Run) -> None:
    listed = run("create -f qcow2 -o help none")
    assert "  compression_type=<zlib|zstd> (default zlib)\n" in listed
    assert "  lazy_refcounts=<on|off> (default off)\n" in listed
    assert "  backing_file=<text>\n" in listed
    assert "  compat=<1.1|v3|0.10|v2>\n" in run("amend -o help none")


@pytest.mark.parametrize(
    ("verb", "mode"),
    [
        ("convert -t {} a.qcow2 b", "always"),
        ("convert -T {} a.qcow2 b", "always"),
        ("compare -T {} a.qcow2 a.qcow2", "always"),
        ("bench -t {} a.qcow2", "always"),
        ("amend -t {} -o size=2M a.qcow2", "directsync"),
        ("amend -t {} -o size=2M a.qcow2", "always"),
    ],
)
def test_cache_mode_that_is_not_there_is_refused(verb: str, mode: str, run: Run) -> None:
    run("create a.qcow2 1M")
    said = run(verb.format(mode), code=2)
    assert mode in said
    assert said.count("\n") == 1


@needs_qemu
@pytest.mark.parametrize("target", ["-O raw", "-O qcow2", "-O qcow2 -c"])
def test_salvage_copies_what_is_left_of_a_cut_image(target: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.qcow2"
    qemu("create", "-q", "-f", "qcow2", path, "64M")
    qemu("-c", "write -q -P 1 0 10M", path, program="qemu-io")
    os.truncate(path, 5 * MIB + 512)
    said = run(f"convert {target} cut.qcow2 copy", code=2)
    assert "cut.qcow2: the image is cut off" in said
    said = run(f"convert --salvage {target} cut.qcow2 copy")
    # The cluster that the file has begun is there, and zero to its end.
    assert f"{85 * 65536 - 65536} bytes could not be read" in said
    qemu("compare", path, tmp_path / "copy")


REFUSED = [
    "create -o cluster_size=3 {} 10M",
    "create -o cluster_size=512 {} 100T",
    "create -o colour=red {} 10M",
    "create -o data_file=nowhere/data {} 10M",
    "create -f luks {} 10M",
    "create -f luks -o hash_alg=none,key_file=key {} 10M",
    "create -f vdi {} 10M",
    "create -f raw -o preallocation=metadata {} 10M",
    "create -f raw {} 9000000T",
    "create -o encrypt.format=luks {} 10M",
    "convert -f raw -O qcow2 -o cluster_size=3 source {}",
    "convert -f raw -c -O raw source {}",
    "convert -f raw -c -O qcow2 -o encrypt.format=luks,key_file=key,iter_time=10 source {}",
    "convert -f raw -O qcow2 --bitmaps source {}",
    "convert -f raw -O qcow2 -m -1 source {}",
    "dd -f raw -O luks if=source of={}",
    "dd -f raw -O vdi if=source of={}",
]


@pytest.mark.parametrize("command", REFUSED)
def test_target_of_what_is_refused_is_what_it_was(command: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"open sesame")
    (tmp_path / "source").write_bytes(bytes(MIB))
    there, files = tmp_path / "there", {"key", "source", "there"}
    there.write_bytes(b"precious")
    assert run(command.format("there"), code=2).count("\n") == 1
    assert there.read_bytes() == b"precious"
    run(command.format("new"), code=2)
    assert {path.name for path in tmp_path.iterdir()} == files


def test_new_image_holds_nothing_of_the_file_it_replaces(run: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    for more in ("-f raw disk", "-o data_file=disk,data_file_raw=on other"):
        disk.write_bytes(b"precious" * 1024)
        run(f"create {more} 1M")
        assert disk.read_bytes() == bytes(MIB)


def test_dd_names_the_operand_that_is_missing(run: Run) -> None:
    assert "dd: of=FILE is missing" in run("dd if=source", code=2)
    assert "dd: if=FILE is missing" in run("dd of=target", code=2)


def test_map_of_compressed_clusters_ends_as_qemu_imgs(run: Run) -> None:
    Path("a.raw").write_bytes(bytes(65536) + b"content." * 8192)
    run("convert -f raw -O qcow2 -c a.raw a.qcow2")
    said = run("map a.qcow2", code=1)
    assert "cannot show compressed or encrypted clusters" in said
    assert said.count("\n") == 2
    assert '"compressed": true' in run("map --output json a.qcow2")


LISTED = [
    "encrypt.format=<luks>",
    "encrypt.key_file=<path of the passphrase>",
    "encrypt.key-secret=<id of an --object secret>",
    "encrypt.iter-time=<number or size> (default 2000)",
]


@pytest.mark.parametrize("verb", ["create", "create -f qcow2", "convert -O qcow2", "measure"])
def test_options_are_listed_without_a_file_by_names_that_are_taken(verb: str, run: Run) -> None:
    listed = run(f"{verb} -o help")
    lines = [line.strip() for line in listed.splitlines()[1:]]
    assert set(LISTED) <= set(lines)
    said = run("create -o colour=red disk 1M", code=2)
    assert "no option 'colour' of qcow2" in said
    names = said.partition("there is: ")[2].strip().split(", ")
    assert names == [line.partition("=")[0] for line in lines]
    for name in names:
        assert "no option" not in run(f"create -o {name}=?,refcount_bits=7 disk 1M", code=2)


def test_measure_takes_the_names_that_it_lists(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"open sesame")
    chosen = "encrypt.format=luks,encrypt.key-secret=s"
    said = run(f"measure -O qcow2 --object secret,id=s,file=key -o {chosen} --size 1M")
    assert "required size" in said


def test_verb_without_its_file_says_so(run: Run) -> None:
    assert "create: FILE is missing" in run("create", code=2)
    assert "amend: FILE is missing" in run("amend -o compat=1.1", code=2)
    assert "  key_file=<path of the passphrase>\n" in run("create -f luks -o help")
    assert "  compat=<1.1|v3|0.10|v2>\n" in run("amend -o help")


@pytest.mark.parametrize(
    ("verb", "cure"),
    [
        ("amend --force -o compat=1.1 a.qcow2", "leave it out"),
        ("amend --object secret,id=a a.qcow2", "--key-file PATH"),
        ("bench -i native a.qcow2", "one way"),
        ("bench -n a.qcow2", "one way"),
        ("bench --no-drain a.qcow2", "leave it out"),
        ("info --image-opts driver=qcow2", "with -f"),
        ("convert -C a.qcow2 b", "the kernel copies"),
        ("convert --target-image-opts a.qcow2 b", "with -O"),
    ],
)
def test_option_of_qemu_img_that_is_not_there_is_refused_with_a_cure(
    verb: str, cure: str, run: Run
) -> None:
    said = run(verb, code=2)
    assert cure in said
    assert said.count("\n") == 1


def test_image_that_is_not_there_is_looked_for_not_made(run: Run) -> None:
    assert run("info nope", code=2) == "ostler: nope: no such disk image; check its path\n"


@pytest.mark.parametrize(
    "words",
    ["", "nope", "-r maybe a.qcow2", "-T none a.qcow2", "--nope a.qcow2", "--output xml a.qcow2"],
)
def test_check_that_cannot_be_made_does_not_end_as_if_the_image_were_damaged(
    words: str, run: Run
) -> None:
    run("create a.qcow2 1M")
    said = run(f"check {words}", code=1)
    assert said.startswith("ostler: ")
    assert said.count("\n") == 1


@needs_qemu
def test_measure_of_a_snapshot_is_what_it_takes(run: Run) -> None:
    run("create a.qcow2 8M")
    qemu("-c", "write 0 3M", "a.qcow2", program="qemu-io")
    run("snapshot -c one a.qcow2")
    qemu("-c", "discard 0 3M", "a.qcow2", program="qemu-io")
    theirs = qemu("measure", "-O", "qcow2", "-l", "one", "a.qcow2")
    ours = run("measure -O qcow2 -l one a.qcow2")
    assert theirs.startswith(ours)
    assert ours != run("measure -O qcow2 a.qcow2")


@pytest.mark.parametrize("command", ["create no/such 1M", "convert -O raw d no/such"])
def test_read_only_file_system_is_told_in_one_line(
    command: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: object, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    (tmp_path / "d").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert "cannot create disk image" in run(command, 2)


@pytest.mark.parametrize(
    "words",
    [
        "convert -p -O qcow2 a.qcow2 b",
        "compare -p a.qcow2 base",
        "rebase -p -b other -F qcow2 over",
        "commit -p over",
    ],
)
def test_progress_is_shown_to_its_end_when_asked(words: str, run: Run) -> None:
    for name in ("a.qcow2", "base", "other"):
        run(f"create {name} 1M")
    run("create -b base -F qcow2 over")
    assert "    (100.00/100%)\r\n" in run(words)
    run("create -q -b base -F qcow2 over")
    assert "100%" not in run(words.replace(" -p", ""))

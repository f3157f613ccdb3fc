"""Command lines that are read without typer mean what typer says they mean."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import loaded_by

from ostler.block.image import create_image
from ostler.cli import invoke
from ostler.cli.declare import for_typer
from ostler.cli.image import VERBS, _command, _load
from ostler.cli.quick import read
from ostler.cli.run import run

PLAIN = [
    "info disk.qcow2",
    "info --output=json -U disk.qcow2",
    "info --output json --force-share -f qcow2 -- -disk",
    "create -q -fqcow2 -o size=1G -o compat=1.1 disk.qcow2 1G",
    "info --key-file secret disk.qcow2",
    "convert -pqO qcow2 -m 4 one two three",
    "convert -c -W -O qcow2 -o compression_type=zstd one --cache unsafe two",
    "compare -s a -f raw b -F qcow2",
    "map --output json -s 1M -l 2M disk",
    "measure --size 1G -O qcow2",
    "bench -w -c 16000 -d 16 -s 4096 -S 65536 --flush-interval 4 -t unsafe disk",
    "dd if=a of=b bs=1M count=1",
    "resize -q disk +10G",
    "snapshot -c one disk",
    "snapshot disk",
    "rebase -u -b  -F qcow2 disk",
    "commit -q -d disk",
    "check -r all -q disk",
]
OTHERS = [
    "info",
    "info --help",
    "info disk --colour",
    "info disk --out json",
    "info --quiet=yes disk",
    "info disk another",
    "bench -c many disk",
    "resize disk -5G",
    "rebase disk",
    "bitmap --add disk name",
]


RUN_PLAIN = [
    "--kernel vmlinuz",
    "--kernel vmlinuz --initrd=initrd.gz --append  --memory 1G --cpus 2",
    "--kernel k --disk a --disk b,readonly=on --net none --no-reboot --stats",
    "--kernel k --accel kvm,kernel-irqchip=split --soft-jit off --balloon --dry-run",
]
RUN_OTHERS = ["", "--kernel", "--kernel k --cpu help", "--cpu max --kernel k", "--kern k", "k"]


def words_of(line: str) -> tuple[str, list[str]]:
    """The verb and what follows it; two blanks are around an empty word."""
    verb, *words = line.split(" ")
    return verb, words


def by_typer(name: str, words: list[str]) -> dict[str, Any]:
    """What typer calls the verb with."""
    return called_with(_load(name), words, name)


def called_with(
    plain_verb: Callable[..., Any], words: list[str], name: str | None = None
) -> dict[str, Any]:
    """What typer calls `plain_verb` with, which `ostler image` knows by `name`."""
    import typer

    seen: list[dict[str, Any]] = []

    def record(**values: Any) -> None:
        seen.append(values)

    verb = for_typer(plain_verb)
    record.__signature__ = inspect.signature(verb)  # type: ignore[attr-defined]
    record.__annotations__ = verb.__annotations__
    app = typer.Typer()
    app.command(cls=None if name is None else _command(name))(record)
    app(words, standalone_mode=False)
    return seen[0]


def with_defaults(verb: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(verb).bind(**values)
    bound.apply_defaults()
    return bound.arguments


@pytest.mark.parametrize("line", PLAIN)
def test_plain_command_line_is_read_as_typer_reads_it(line: str) -> None:
    name, words = words_of(line)
    values = read(_load(name), words)
    assert values is not None
    assert with_defaults(_load(name), values) == by_typer(name, words)


@pytest.mark.parametrize("line", OTHERS)
def test_what_is_not_plain_is_left_to_typer(line: str) -> None:
    name, words = words_of(line)
    assert read(_load(name), words) is None


@pytest.mark.parametrize("name", VERBS)
def test_help_of_every_verb_is_typers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["image", name, "--help"]) == 0
    assert "Options" in capsys.readouterr().out


@pytest.mark.parametrize("line", RUN_PLAIN)
def test_plain_run_is_read_as_typer_reads_it(line: str) -> None:
    words = line.split(" ")
    values = read(run, words)
    assert values is not None
    assert with_defaults(run, values) == called_with(run, words)


@pytest.mark.parametrize("line", RUN_OTHERS)
def test_run_that_is_not_plain_is_left_to_typer(line: str) -> None:
    assert read(run, line.split()) is None


def test_plain_run_loads_no_parser(tmp_path: Path) -> None:
    loaded = loaded_by("run", "--kernel", tmp_path / "none", "--accel", "soft", "--net", "none")
    assert "ostler.control.vm" in loaded
    assert not {"typer", "rich", "click"} & loaded


def test_plain_verb_loads_no_parser_and_nothing_slow(tmp_path: Path) -> None:
    create_image(tmp_path / "disk", 1 << 20)
    disk, new = tmp_path / "disk", tmp_path / "new"
    for words in (
        ("info", disk),
        ("check", disk),
        ("snapshot", disk),
        ("map", disk),
        ("compare", disk, disk),
        ("measure", "-O", "qcow2", disk),
        ("create", new, "1G"),
        ("convert", "-O", "qcow2", disk, new),
    ):
        loaded = loaded_by("image", *words)
        assert "ostler.block.formats.qcow2.image" in loaded
        assert not {"typer", "msgspec", "asyncio", "rich", "dataclasses"} & loaded, words

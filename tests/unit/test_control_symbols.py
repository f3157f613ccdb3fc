"""Names for addresses: maps as Linux has them, and ELF files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ostler.control.symbols import Symbols, of_elf
from ostler.errors import ConfigError

KALLSYMS = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000040 t secondary_startup_64
ffffffff82000000 D some_data
ffffffffc0001000 t virtblk_done\t[virtio_blk]
"""


def test_symbol_before_an_address_names_it_with_the_distance(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    symbols = Symbols.read(path)
    assert len(symbols) == 3
    assert symbols.name(0xFFFFFFFF81000000) == "_stext"
    assert symbols.name(0xFFFFFFFF8100003F) == "_stext+0x3f"
    assert symbols.name(0xFFFFFFFF81000042) == "secondary_startup_64+0x2"
    assert symbols.name(0xFFFFFFFFC0001004) == "virtblk_done+0x4"


def test_address_before_all_symbols_or_far_behind_one_has_no_name() -> None:
    symbols = Symbols([(0x1000, "start")])
    assert symbols.name(0xFFF) is None
    assert symbols.name(0x1000 + (1 << 20)) is None
    assert Symbols().name(0) is None


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        Symbols.read(tmp_path)


@pytest.fixture
def program(tmp_path: Path) -> bytes:
    """An ELF file with a function and a variable."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "program.c"
    source.write_text("int variable = 1; int work(int x) { return x + variable; }\n")
    subprocess.run(
        [compiler, "-nostdlib", "-static", "-Wl,-e,work", "-o", tmp_path / "program", source],
        check=True,
    )
    return (tmp_path / "program").read_bytes()


def test_elf_file_gives_its_functions(program: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(program)
    symbols = {name: address for address, name in of_elf(program)}
    assert "work" in symbols
    assert "variable" not in symbols
    assert Symbols.read(path).name(symbols["work"] + 1) == "work+0x1"


def test_elf_file_cut_or_damaged_never_raises(program: bytes) -> None:
    for size in range(0, len(program), 97):
        list(of_elf(program[:size]))
    for at in range(0, len(program), 61):
        damaged = bytearray(program)
        damaged[at : at + 4] = b"\xff" * 4
        list(of_elf(bytes(damaged)))

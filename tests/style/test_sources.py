"""What holds for every source file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from repository import ROOT, tracked

PYTHON = tracked("src/ostler/*.py")
TEXT = tracked(
    "*.py", "*.pyi", "*.rs", "*.toml", "*.md", "*.c", "*.S", "Makefile", ".ci/*", "tools/*"
)

# Places that exist on one machine only. Spelled so that this file does not contain them.
MACHINE_PATHS = re.compile(rb"(?<![\w.$}])/(?:home|Users|work|root/\.)(?:/)[a-z]")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", TEXT, ids=relative)
def test_file_names_no_path_of_one_machine(path: Path) -> None:
    content = path.read_bytes()
    assert str(ROOT).encode() not in content
    assert not MACHINE_PATHS.findall(content)


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    bare = [
        f"line {node.lineno}: {node.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]
    assert not bare


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_suppression_names_its_code_and_reason(path: Path) -> None:
    lines = path.read_text().splitlines()
    blanket = re.compile(r"#\s*(?:noqa(?!: [A-Z]+\d+)|type:\s*ignore(?!\[[\w-]+\]\s+#\s))")
    assert not [line for line in lines if blanket.search(line)]


def test_python_files_are_short() -> None:
    long = {relative(path): lines for path in PYTHON if (lines := _lines(path)) > 500}
    assert not long


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")

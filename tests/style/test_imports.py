"""Imports point one way (ARCHITECTURE.md, "Which way imports point")."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT, tracked

LEAVES = {"errors", "state", "config", "registers", "unix_socket", "waiting"}
PARTS = {"devices", "block", "net", "firmware"}

# What each part of the Python package may import of the others, besides itself.
PYTHON_LAYERS = {
    "errors": set[str](),
    "state": {"errors"},
    "registers": set[str](),
    "unix_socket": set[str](),
    "waiting": set[str](),
    "config": {"errors"},
    "devices": LEAVES | {"block", "net"},
    "block": LEAVES | {"engine"},  # `engine.block`, `engine.crypto`; nothing of a machine
    "net": LEAVES,
    "firmware": LEAVES,
    "image": {"errors"},
    "host": LEAVES | {"engine"},
    "engine": LEAVES | {"_native"},
    "_native": {"engine", "registers"},  # a stub: the extension hands out the engine's own classes
    "machine": LEAVES | PARTS | {"engine", "host"},
    "control": LEAVES | PARTS | {"engine", "host", "machine"},
    "migration": LEAVES | {"control", "engine", "machine"},
    "testing": LEAVES | PARTS,
    "cli": LEAVES
    | {"block", "control", "host", "image", "machine", "migration", "net", "__init__"},
    "__init__": LEAVES | {"block", "control", "host", "machine"},
    "__main__": {"cli"},
}

# What each crate may depend on of the others.
RUST_LAYERS = {
    "ostler-memory": set[str](),
    "ostler-crypto": set[str](),
    "ostler-engine": {"ostler-memory"},
    "ostler-block": {"ostler-crypto"},
    "ostler-virtio": {"ostler-block", "ostler-memory", "ostler-engine"},
    "ostler-nic": {"ostler-memory", "ostler-engine", "ostler-virtio"},
    "ostler-irqchip": {"ostler-engine"},
    "ostler-x86": {"ostler-memory", "ostler-engine", "ostler-irqchip"},
    "ostler-kvm": {"ostler-memory", "ostler-engine", "ostler-irqchip"},
    "ostler-python": {
        "ostler-block", "ostler-memory", "ostler-crypto", "ostler-engine", "ostler-virtio",
        "ostler-nic",
        "ostler-x86",
        "ostler-kvm",
    },
}  # fmt: skip

PACKAGE = ROOT / "src/ostler"
MODULES = tracked("src/ostler/*.py", "src/ostler/*.pyi")
CRATES = tracked("crates/*/Cargo.toml")


def part_of(path: Path) -> str:
    """The layer a file is in: the first name under `ostler`."""
    return path.relative_to(PACKAGE).parts[0].partition(".")[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and layer of each import of this package in `path`, also inside functions."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case (
                ast.ImportFrom(module=None, lineno=line) | ast.ImportFrom(level=1 | 2, lineno=line)
            ):
                yield line, "a relative import"
            case ast.ImportFrom(module="ostler", names=names, lineno=line):
                # The version is a constant that is there before any part is loaded.
                parts = (alias.name for alias in names if alias.name != "__version__")
                yield from ((line, layer(name)) for name in parts)
            case ast.ImportFrom(module=str(module), lineno=line) if module.startswith("ostler."):
                yield line, module.split(".")[1]
            case ast.Import(names=names, lineno=line):
                yield from (
                    (line, layer(alias.name.partition(".")[2].split(".")[0]))
                    for alias in names
                    if alias.name.split(".")[0] == "ostler"
                )
            case _:
                continue


def layer(name: str) -> str:
    """The layer of `ostler.name`: a part of the package, or a public name of its `__init__`."""
    return name if name in PYTHON_LAYERS else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    part = part_of(path)
    assert part in PYTHON_LAYERS, f"{part} is a new part: give it its place in PYTHON_LAYERS"
    allowed = PYTHON_LAYERS[part] | {part}
    wrong = [f"line {line}: {name}" for line, name in imported(path) if name not in allowed]
    assert not wrong, f"{part} may import {sorted(allowed)}"


@pytest.mark.parametrize("path", CRATES, ids=lambda path: path.parent.name)
def test_crate_depends_only_on_what_its_layer_may(path: Path) -> None:
    manifest = tomllib.loads(path.read_text())
    name = manifest["package"]["name"]
    assert name in RUST_LAYERS, f"{name} is a new crate: give it its place in RUST_LAYERS"
    dependencies = set(manifest.get("dependencies", {})) | set(
        manifest.get("build-dependencies", {})
    )
    ours = {dependency for dependency in dependencies if dependency.startswith("ostler-")}
    assert ours <= RUST_LAYERS[name]


def test_pyo3_is_a_dependency_of_one_crate() -> None:
    users = [
        path.parent.name
        for path in CRATES
        if "pyo3" in tomllib.loads(path.read_text())["dependencies"]
    ]
    assert users == ["ostler-python"]

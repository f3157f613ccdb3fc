"""Module resolution, from depmod's files and from the modules themselves."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from ostler.errors import ConfigError
from ostler.image import ModuleTree
from ostler.image.modules import Needs, read_modinfo


def module(*fields: str) -> bytes:
    """An ELF file with nothing but a `.modinfo` section."""
    info = b"".join(field.encode() + b"\0" for field in fields)
    names = b"\0.modinfo\0.shstrtab\0"
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + bytes(24) + struct.pack("<Q", 64)
    header += struct.pack("<IHHHHHH", 0, 64, 0, 0, 64, 3, 2)
    data = 64 + 3 * 64

    def entry(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size) + bytes(24)

    table = bytes(64) + entry(1, data, len(info)) + entry(10, data + len(info), len(names))
    return header + table + info + names


def tree(root: Path, modules: dict[str, bytes], **depmod: str) -> ModuleTree:
    for name, content in modules.items():
        path = root / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, text in depmod.items():
        (root / f"modules.{name}").write_text(text)
    return ModuleTree(root)


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_resolve_with_modules_dep_puts_needed_ones_first(tmp_path: Path) -> None:
    modules = tree(
        tmp_path,
        dict.fromkeys(["a.ko", "b.ko", "c-d.ko"], b""),
        dep="kernel/a.ko: kernel/b.ko kernel/c-d.ko\nkernel/b.ko: kernel/c-d.ko\nkernel/c-d.ko:\n",
    )
    assert names(modules.resolve(["a"])) == ["c-d.ko", "b.ko", "a.ko"]


def test_resolve_without_modules_dep_reads_the_modules(tmp_path: Path) -> None:
    modules = tree(
        tmp_path,
        {
            "a.ko": module("name=a", "depends=b,c_d"),
            "b.ko.xz": lzma.compress(module("depends=c_d")),
            "c-d.ko": module("depends="),
        },
    )
    assert names(modules.resolve(["a", "b"])) == ["c-d.ko", "b.ko.xz", "a.ko"]


def test_resolve_with_softdep_takes_those_that_are_there(tmp_path: Path) -> None:
    modules = tree(
        tmp_path,
        dict.fromkeys(["a.ko", "before.ko", "after.ko"], b""),
        dep="kernel/a.ko:\n",
        softdep="# comment\nsoftdep a pre: before gone\nsoftdep a post: after\n",
    )
    assert names(modules.resolve(["a"])) == ["before.ko", "a.ko", "after.ko"]


def test_resolve_with_a_soft_alias_takes_the_modules_behind_it(tmp_path: Path) -> None:
    depmod = tree(
        tmp_path / "installed",
        dict.fromkeys(["fs.ko", "crc-generic.ko"], b""),
        dep="kernel/fs.ko:\nkernel/crc-generic.ko:\n",
        softdep="softdep fs pre: crc\n",
        alias="# comment\nalias crc crc_generic\n",
    )
    unpacked = tree(
        tmp_path / "unpacked",
        {"fs.ko": module("softdep=pre: crc"), "crc-generic.ko": module("alias=crc")},
    )
    assert names(depmod.resolve(["fs"])) == names(unpacked.resolve(["fs"]))
    assert names(unpacked.resolve(["fs"])) == ["crc-generic.ko", "fs.ko"]


def test_resolve_with_dashes_for_underscores_finds_the_module(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"virtio-rng.ko": module()})
    assert names(modules.resolve(["virtio_rng", "virtio-rng"])) == ["virtio-rng.ko"]


def test_resolve_of_a_built_in_module_adds_nothing(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"a.ko": module()}, builtin="kernel/drivers/virtio/virtio.ko\n")
    assert modules.resolve(["virtio"]) == []


def test_resolve_of_a_soft_ring_ends(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"a.ko": module("softdep=pre: b"), "b.ko": module("softdep=pre: a")})
    assert names(modules.resolve(["a"])) == ["b.ko", "a.ko"]


def test_resolve_of_an_unknown_module_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="module nothing"):
        tree(tmp_path, {"a.ko": module()}).resolve(["nothing"])


def test_tree_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no kernel modules"):
        ModuleTree(tmp_path)


def test_modinfo_gives_hard_and_soft_needs(tmp_path: Path) -> None:
    path = tmp_path / "m.ko"
    path.write_bytes(module("depends=x-y", "softdep=pre: p post: q"))
    assert read_modinfo(path) == Needs(("x_y",), ("p",), ("q",))


@pytest.mark.parametrize("cut", [0, 10, 63, 100, 200])
def test_modinfo_of_a_damaged_file_is_one_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "m.ko"
    path.write_bytes(module("depends=")[:cut])
    with pytest.raises(ConfigError):
        read_modinfo(path)

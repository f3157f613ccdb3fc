"""Kernel modules and the order in which they have to be inserted.

A tree such as `/lib/modules/6.1.0-56-cloud-amd64` says in `modules.dep` which modules each one
needs (format: depmod(8), modules.dep(5)), in `modules.softdep` which it would like, and in
`modules.alias` by what other names they go. A kernel package that has been unpacked but not
installed has none of these yet; then each module's own `.modinfo` section (fields `depends`,
`softdep` and `alias`) is read, from which depmod makes those files. Aliases that are patterns, such
as those of PCI devices, are not followed.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import zstandard

from ostler.errors import ConfigError
from ostler.image.elf import section

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


Soft = tuple[tuple[str, ...], tuple[str, ...]]
"""Names wanted before a module, and after it."""


class Needs(NamedTuple):
    """What a module asks for, by module name: `hard` must be there, `soft` may be missing."""

    hard: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


class ModuleTree:
    """The modules of one kernel version.

    Args:
        root: the directory that holds `kernel/`, named after the version.

    Raises:
        ConfigError: `root` holds no modules.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths = {module_name(path): path for path in _module_files(root)}
        if not self._paths:
            raise ConfigError(f"{root}: no kernel modules there; name a /lib/modules/VERSION")
        self._builtin = {module_name(Path(line)) for line in _lines(root / "modules.builtin")}
        self._dependencies = dict(_read_dependencies(root / "modules.dep"))
        self._soft = _read_soft(root / "modules.softdep")

    @property
    def version(self) -> str:
        """The kernel version, which is the directory's name."""
        return self.root.resolve().name

    def path(self, name: str) -> Path:
        """The file of module `name`; `-` and `_` are the same.

        Raises:
            ConfigError: no such module.
        """
        path = self._paths.get(module_name(Path(name)))
        if path is None:
            raise ConfigError(f"module {name}: not under {self.root}; see modinfo -k for names")
        return path

    def resolve(self, names: Iterable[str]) -> list[Path]:
        """Files of `names` and all they need, each after what it needs, none twice.

        Modules that are built into the kernel are left out, and so are soft dependencies that are
        not there.

        Raises:
            ConfigError: a module, or one that it needs, is neither there nor built in.
        """
        order: dict[str, Path] = {}
        for name in names:
            self._insert(module_name(Path(name)), order, set())
        return list(order.values())

    def _insert(self, name: str, order: dict[str, Path], open_names: set[str]) -> None:
        if name in order or name in open_names:
            return
        if name in self._builtin and name not in self._paths:
            return
        path = self.path(name)
        open_names.add(name)
        needs = self._needs(name, path)
        for needed in (*self._present(needs.before), *needs.hard):
            self._insert(needed, order, open_names)
        order[name] = path
        for wanted in self._present(needs.after):
            self._insert(wanted, order, open_names)

    def _present(self, names: Iterable[str]) -> Iterator[str]:
        """Those modules of the tree that `names` stand for, by name or by alias."""
        for name in names:
            if name in self._paths:
                yield name
            elif name not in self._builtin:
                yield from self._aliases.get(name, ())

    @cached_property
    def _aliases(self) -> dict[str, list[str]]:
        """Module names by alias; read on first use: without `modules.alias` it takes a while."""
        pairs: Iterable[tuple[str, str]]
        if self._dependencies:
            pairs = _read_aliases(self.root / "modules.alias")
        else:
            pairs = (
                (alias, name)
                for name, path in self._paths.items()
                for alias in read_modinfo(path).aliases
            )
        found: dict[str, list[str]] = {}
        for alias, name in pairs:
            found.setdefault(alias, []).append(name)
        return found

    def _needs(self, name: str, path: Path) -> Needs:
        if not self._dependencies:
            return read_modinfo(path)
        before, after = self._soft.get(name, ((), ()))
        return Needs(self._dependencies.get(name, ()), before, after)


def module_name(path: Path) -> str:
    """The name the kernel knows a module file by: no suffix, `_` for `-`."""
    return path.name.split(".ko")[0].replace("-", "_")


@cache
def read_modinfo(path: Path) -> Needs:
    """What the module file says of its dependencies (`MODULE_SOFTDEP`, and what modpost found).

    Raises:
        ConfigError: the file is no kernel module.
    """
    fields: dict[str, list[str]] = {}
    for entry in section(_content(path), ".modinfo", path).split(b"\0"):
        key, _, value = entry.decode("utf-8", "replace").partition("=")
        fields.setdefault(key, []).append(value)
    hard = [name for value in fields.get("depends", ()) for name in value.split(",") if name]
    soft = [_split_soft(value.split()) for value in fields.get("softdep", ())]
    return Needs(
        tuple(module_name(Path(name)) for name in hard),
        tuple(name for before, _ in soft for name in before),
        tuple(name for _, after in soft for name in after),
        tuple(alias.replace("-", "_") for alias in fields.get("alias", ())),
    )


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".zst":
            return zstandard.ZstdDecompressor().stream_reader(data).read()
        if path.suffix == ".gz":
            return gzip.decompress(data)
    except (lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: damaged ({error}); unpack the kernel package again") from error
    return data


def _module_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.ko*")):
        if path.name.endswith(SUFFIXES):
            yield path


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _read_dependencies(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Entries of `modules.dep`: "FILE: NEEDED NEEDED ...", nearest dependency first."""
    for line in _lines(path):
        file, _, needed = line.partition(":")
        names = [module_name(Path(name)) for name in needed.split()]
        yield module_name(Path(file)), tuple(reversed(names))


def _read_soft(path: Path) -> dict[str, Soft]:
    """Entries of `modules.softdep`: "softdep NAME [pre: NAME ...] [post: NAME ...]".

    A module may have several.
    """
    found: dict[str, Soft] = {}
    for line in _lines(path):
        match line.split():
            case ["softdep", name, *rest]:
                name = name.replace("-", "_")
                before, after = found.get(name, ((), ()))
                more_before, more_after = _split_soft(rest)
                found[name] = (before + more_before, after + more_after)
            case _:
                continue
    return found


def _read_aliases(path: Path) -> Iterator[tuple[str, str]]:
    """Entries of `modules.alias`: "alias PATTERN NAME"."""
    for line in _lines(path):
        match line.split():
            case ["alias", alias, name]:
                yield alias.replace("-", "_"), name.replace("-", "_")
            case _:
                continue


def _split_soft(words: list[str]) -> Soft:
    lists: dict[str, list[str]] = {"pre:": [], "post:": []}
    current = lists["pre:"]
    for word in words:
        if word in lists:
            current = lists[word]
        else:
            current.append(word.replace("-", "_"))
    return tuple(lists["pre:"]), tuple(lists["post:"])

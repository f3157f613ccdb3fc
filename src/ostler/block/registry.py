"""The formats and transports there are: one list of each, loaded when one is used.

A format is a module of `formats/` with a `FORMAT`; a line in `FORMATS` makes it known, and the
conformance test exercises it. Its magic numbers are here, so that probing loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from ostler.block.image import Image, ImageFile, ImageWriter, Opening, local_name
from ostler.config.options import SWITCH
from ostler.config.size import parse_size
from ostler.errors import DiskError

if TYPE_CHECKING:
    from ostler.block.choices import Choices

T = TypeVar("T", bound="Choices")
PROBED_BYTES = 4096


class Magic(NamedTuple):
    """Bytes that a format has at a place; a negative offset counts from the end of the file."""

    offset: int
    data: bytes


class Format(NamedTuple):
    """What a format can do. `open` owns the file it is given once it returns."""

    open: Callable[[ImageFile, Opening], Image]
    creation: str | None = None
    """The module that makes new images, if there is one: it has `Options` and `prepare`."""

    @property
    def Options(self) -> type[Choices] | None:  # noqa: N802 - it is a class
        """What can be chosen at creation, by QEMU's names with `_` for `-`."""
        return import_module(self.creation).Options if self.creation else None

    @property
    def prepare(self) -> Callable[[str, int, Any], ImageWriter] | None:
        """From name, size and `Options` what writes the empty image; refuses what cannot be."""
        return import_module(self.creation).prepare if self.creation else None

    def parse_options(self, given: Mapping[str, Any]) -> Any:
        """`Options` from values or their texts; `DiskError` names a wrong one."""
        options = self.Options
        assert options is not None
        return parse_options(options, given)


def parse_options(kind: type[T], given: Mapping[str, Any]) -> T:
    """Choices from values or their texts; `DiskError` names a wrong one."""
    for name in given:
        if name not in kind.names():
            there_is = ", ".join(sorted(kind.names())) or "none"
            raise DiskError(f"there is no option {name!r} of this format; there is: {there_is}")
    if not given:
        return kind()
    import msgspec

    struct = kind.struct()
    known = {field.name: field.type for field in msgspec.structs.fields(struct)}
    plain = {name: _plain(known[name], value) for name, value in given.items()}
    try:
        checked = msgspec.convert(plain, struct, strict=False)
    except msgspec.ValidationError as error:
        raise DiskError(f"option of the disk image: {error}") from None
    return kind(**{name: getattr(checked, name) for name in given})


def _plain(kind: Any, value: Any) -> Any:
    """The text of a size or a switch as what it says."""
    if not isinstance(value, str):
        return value
    if kind in (int, int | None):
        return parse_size(value, "size")
    return SWITCH.get(value, value) if kind in (bool, bool | None) else value


class FormatEntry(NamedTuple):
    """A format by name, and what its files begin or end with."""

    name: str
    module: str
    magics: tuple[Magic, ...] = ()

    def load(self) -> Format:
        """The format itself."""
        return cast(Format, import_module(self.module).FORMAT)


_ALL = [
    FormatEntry("raw", "ostler.block.formats.raw"),
    FormatEntry(
        "vmdk",
        "ostler.block.formats.vmdk",
        (Magic(0, b"KDMV"), Magic(0, b"COWD"), Magic(0, b"# Disk DescriptorFile")),
    ),
    FormatEntry("vdi", "ostler.block.formats.vdi", (Magic(64, b"\x7f\x10\xda\xbe"),)),
    FormatEntry("vhdx", "ostler.block.formats.vhdx", (Magic(0, b"vhdxfile"),)),
    FormatEntry("luks", "ostler.block.formats.luks", (Magic(0, b"LUKS\xba\xbe"),)),
    FormatEntry("vpc", "ostler.block.formats.vpc", (Magic(0, b"conectix"),)),
    # One line each, in the order of probing.
    FormatEntry("qcow2", "ostler.block.formats.qcow2", (Magic(0, b"QFI\xfb"),)),
]
FORMATS = {entry.name: entry for entry in _ALL}


class TransportModule(Protocol):
    """What a module of `transports/` offers."""

    def open_file(self, url: str, *, readonly: bool, lock: bool) -> ImageFile:
        """What is at `url`, or `DiskError`."""


_NBD = "ostler.block.transports.nbd"
TRANSPORTS = {"nbd": _NBD, "nbds": _NBD, "nbd+unix": _NBD, "nbds+unix": _NBD}
"""URL scheme to the module that serves it; what has no scheme is a local file."""


def find_format(name: str, path: str | None = None) -> FormatEntry:
    """The format of this name, given for the image at `path`; or `DiskError`."""
    try:
        return FORMATS[name]
    except KeyError:
        there_is = ", ".join(FORMATS)
        of = "" if path is None else f"{path}: "
        raise DiskError(
            f"{of}there is no disk image format {name!r}; there is: {there_is}"
        ) from None


def probe(file: ImageFile) -> FormatEntry:
    """The format that the content of `file` says it has; raw when it says nothing."""
    head = file.read(0, PROBED_BYTES)
    for entry in FORMATS.values():
        if any(_has(file, head, magic) for magic in entry.magics):
            return entry
    return FORMATS["raw"]


def _has(file: ImageFile, head: bytes, magic: Magic) -> bool:
    if magic.offset >= 0:
        return head[magic.offset : magic.offset + len(magic.data)] == magic.data
    at = file.size_bytes + magic.offset
    return at >= 0 and file.read(at, len(magic.data)) == magic.data


def guarded_magics() -> tuple[Magic, ...]:
    """What a guest may not write to a disk that was probed as raw."""
    return tuple(magic for entry in FORMATS.values() for magic in entry.magics if magic.offset >= 0)


def open_file(path: str, *, readonly: bool, lock: bool = True, direct: bool = False) -> ImageFile:
    """The bytes at a path or URL; `direct` is for local files."""
    local = local_name(path)
    if local is None:
        return _transport(path).open_file(path, readonly=readonly, lock=lock)
    from ostler.block.transports.file import LocalFile

    return LocalFile(local, readonly=readonly, lock=lock, direct=direct)


def create_file(path: str) -> ImageFile:
    """The file at `path` to write an image to; it is made if need be, and nobody else uses it.

    What it holds already is there until who writes the image truncates it.
    """
    local = local_name(path)
    if local is None:
        return open_file(path, readonly=False)
    from ostler.block.transports.file import LocalFile

    return LocalFile.create(local)


def _transport(url: str) -> TransportModule:
    scheme = url.partition("://")[0]
    if scheme not in TRANSPORTS:
        there_is = ", ".join(["file", *TRANSPORTS])
        raise DiskError(f"{url}: there is no transport {scheme!r}; there is: {there_is}")
    return cast(TransportModule, import_module(TRANSPORTS[scheme]))

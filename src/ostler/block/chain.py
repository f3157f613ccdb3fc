"""What is behind an image: names of backing files resolved, chains walked and mapped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from ostler.block.image import (
    BackingReference,
    Extent,
    Image,
    Layered,
    LocalDescriptor,
    Opening,
    local_name,
    open_with,
)
from ostler.engine.block import BlockDisk, BlockStorage, map_json, map_layers
from ostler.errors import DiskError

MAX_DEPTH = 200


def resolve(reference: str, beside: str) -> str:
    """What `reference`, written in the image `beside`, names.

    A relative path is relative to the image's directory; a URL and a `json:` object stand alone.
    """
    if reference.startswith("json:"):
        return _from_json(reference, beside)
    path, image = local_name(reference), local_name(beside)
    if path is None or os.path.isabs(path) or reference.startswith("file:"):
        return reference
    if image is None:
        return beside.rsplit("/", 1)[0] + "/" + reference
    return os.path.normpath(os.path.join(os.path.dirname(image), path))


def _from_json(reference: str, beside: str) -> str:
    """The file name in QEMU's `json:{...}`, if that is all it says."""
    import json

    try:
        options: Any = json.loads(reference.removeprefix("json:"))
        name = _file_name(options)
    except (ValueError, AttributeError, RecursionError):
        name = None
    if not isinstance(name, str) or name.startswith("json:"):
        raise DiskError(
            f"{beside}: cannot use the backing file {reference}; set a plain name with: rebase -u"
        )
    return resolve(name, beside)


def _file_name(options: dict[str, Any]) -> Any:
    for key in ("file.filename", "filename"):
        if key in options:
            return options[key]
    below = options.get("file")
    return _file_name(below) if isinstance(below, dict) else None


def open_backing(
    image: str, reference: BackingReference, how: Opening, *, readonly: bool = True
) -> Image:
    """The image that `reference` in `image` names, opened as `how` says but read-only."""
    target = resolve(reference.filename, image)
    chain = (*how.chain, identity(image))
    if identity(target) in chain:
        raise DiskError(
            f"{image}: its backing chain leads back to {target}; set another backing file"
        )
    if len(chain) > MAX_DEPTH:
        raise DiskError(f"{image}: more than {MAX_DEPTH} images in a chain; commit or rebase some")
    try:
        return open_with(target, reference.format, how._replace(readonly=readonly, chain=chain))
    except DiskError as error:
        if str(error).startswith(image):
            raise
        raise DiskError(f"{image}: backing file: {error}") from None


def identity(name: str) -> str:
    """The same for all names of a file."""
    path = local_name(name)
    return name if path is None else os.path.realpath(path)


def refuse_guessed_chain(image: str, how: Opening) -> None:
    """Fail for a backing image that names files itself, if its format was only guessed.

    A guest that owned it as a raw disk may have written that name to read a file of the host.
    """
    if how.probed and how.chain:
        raise DiskError(
            f"{image}: is used as a backing file of unknown format and names files itself;"
            f" say what it is with: ostler image rebase -u -F qcow2 -b {image} OVERLAY"
        )


def layers(image: Image) -> Iterator[Image]:
    """The image and all behind it."""
    at: Image | None = image
    while at is not None:
        yield at
        at = at.backing if isinstance(at, Layered) else None


class Mapped(NamedTuple):
    """A run of a disk, seen through all layers. `depth` 0 is the image in front."""

    start: int
    length: int
    depth: int
    present: bool
    """Some layer holds it."""
    zero: bool
    data: bool
    compressed: bool
    offset: int | None
    name: str


def map_chain(image: Image, offset: int = 0, length: int | None = None) -> Iterator[Mapped]:
    """Where each byte of the disk is kept, through all layers, neighbours merged."""
    end = image.size_bytes if length is None else min(offset + length, image.size_bytes)
    if (chain := native_chain(image)) is not None:
        names = [layer.name for layer in layers(image)]
        for found in map_layers(chain, min(offset, end), end):
            yield Mapped(*found, names[found[2]])
        return
    last: Mapped | None = None
    for run in _runs(image, offset, end, 0):
        if last is not None and _continues(last, run):
            last = last._replace(length=last.length + run.length)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def map_text(image: Image, offset: int = 0, length: int | None = None) -> str | None:
    """The same as `qemu-img map --output json` prints it; `None` where a layer is Python's."""
    chain = native_chain(image)
    end = image.size_bytes if length is None else min(offset + length, image.size_bytes)
    return None if chain is None else map_json(chain, min(offset, end), end)


def native_chain(image: Image) -> list[tuple[BlockDisk, BlockStorage | None]] | None:
    """The layers as the engine walks them; `None` where one of them is Python's, or encrypted."""
    chain: list[tuple[BlockDisk, BlockStorage | None]] = []
    for layer in layers(image):
        disk = getattr(layer, "disk", None)
        file = getattr(layer, "data_file", None) or getattr(layer, "file", None)
        if not isinstance(disk, BlockDisk) or not isinstance(file, LocalDescriptor):
            return None
        if _is_encrypted(layer):
            return None
        chain.append((disk, BlockStorage.from_fd(file.fd) if _has_holes(layer, file) else None))
    return chain


def _is_encrypted(layer: Image) -> bool:
    """Whether what its file holds is not what it reads as: a hole is noise."""
    return getattr(getattr(layer, "header", None), "crypt_method", 0) != 0


def _has_holes(layer: Image, file: LocalDescriptor) -> bool:
    """Whether some of what an image keeps may be a hole of its file; raw ones know themselves.

    As QEMU: not where the file has about as many blocks as it has bytes.
    """
    facts = os.fstat(file.fd)
    return layer.format != "raw" and facts.st_blocks * 512 * 10 // 9 < facts.st_size


def _runs(image: Image, offset: int, end: int, depth: int) -> Iterator[Mapped]:
    backing = image.backing if isinstance(image, Layered) else None
    there = min(end, image.size_bytes)
    if offset < there:
        for extent in image.extents(offset, there - offset):
            if not extent.allocated and backing is not None:
                yield from _runs(backing, extent.offset, extent.end, depth + 1)
                continue
            yield from _held(image, extent, depth)
    if there < end:
        # Behind the end of a shorter backing image the one in front of it decides, as QEMU counts.
        at = max(offset, there)
        yield Mapped(at, end - at, depth - 1, False, True, False, False, None, image.name)


def _held(image: Image, extent: Extent, depth: int) -> Iterator[Mapped]:
    """An extent that this layer decides about; holes of the file below read as zeroes."""
    data = extent.allocated and not extent.zero
    place = None if _is_encrypted(image) else extent.host_offset
    whole = Mapped(
        extent.offset,
        extent.length,
        depth,
        extent.allocated,
        zero=not data,
        data=data,
        compressed=extent.compressed,
        offset=place,
        name=image.name,
    )
    file = getattr(image, "data_file", None) or getattr(image, "file", None)
    if not data or place is None or file is None:
        yield whole
        return
    for piece in file.extents(place, extent.length):
        start = extent.offset + piece.offset - place
        yield whole._replace(start=start, length=piece.length, zero=piece.zero, offset=piece.offset)


def _continues(last: Mapped, run: Mapped) -> bool:
    if last[2:7] != run[2:7]:
        return False
    if last.offset is None or run.offset is None:
        return last.offset is run.offset
    return last.offset + last.length == run.offset

"""From images as Python has them to the engine's data path."""

from __future__ import annotations

from ostler.block.image import Image, ImageFile, LocalDescriptor
from ostler.engine.block import BlockDisk, BlockStorage


def storage_of(file: ImageFile) -> BlockStorage:
    """The file as the data path takes it: a descriptor if it has one, else calls."""
    if isinstance(file, LocalDescriptor):
        return BlockStorage.from_fd(file.fd)
    return BlockStorage.from_file(file)


def disk_of(image: Image) -> BlockDisk:
    """The image as the data path takes it: its own disk if it has one, else calls."""
    disk = getattr(image, "disk", None)
    return disk if isinstance(disk, BlockDisk) else BlockDisk.from_image(image.name, image)

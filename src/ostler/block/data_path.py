"""From images as Python has them to the engine's data path."""

from __future__ import annotations

from ostler.block.image import Image, ImageFile, LocalDescriptor
from ostler.engine.block import BlockDisk, BlockStorage
from ostler.errors import DiskError


def storage_of(file: ImageFile) -> BlockStorage:
    """The file as the data path takes it: a descriptor if it has one, else calls."""
    if isinstance(file, LocalDescriptor):
        return _of_descriptor(file.name, file.fd, direct=getattr(file, "direct", False))
    return BlockStorage.from_file(file)


def _of_descriptor(name: str, fd: int, *, direct: bool) -> BlockStorage:
    try:
        return BlockStorage.from_fd(fd, direct=direct)
    except OSError as error:
        if not direct:
            raise
        raise DiskError(
            f"{name}: its file system has no O_DIRECT ({error.strerror}); give cache=writeback"
        ) from None


def disk_of(image: Image) -> BlockDisk:
    """The image as the data path takes it: its own disk if it has one, else calls."""
    if getattr(image, "is_locked", False):
        from ostler.block.crypto.secret import needs_passphrase

        raise needs_passphrase(image.name)
    disk = getattr(image, "disk", None)
    return disk if isinstance(disk, BlockDisk) else BlockDisk.from_image(image.name, image)

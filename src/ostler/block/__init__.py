"""Disk images: what a virtual disk's bytes are kept in."""

from ostler.block.image import HostFile, Image, create_image, open_image

__all__ = ["HostFile", "Image", "create_image", "open_image"]

"""Disk images: what a virtual disk's bytes are kept in."""

from ostler.block.image import HostFile, Image, open_image

__all__ = ["HostFile", "Image", "open_image"]

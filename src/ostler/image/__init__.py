"""Images a guest starts from, made without root and without outside programs."""

from ostler.image.compress import COMPRESSIONS, compress
from ostler.image.cpio import Archive
from ostler.image.initramfs import Initramfs
from ostler.image.modules import ModuleTree

__all__ = ["COMPRESSIONS", "Archive", "Initramfs", "ModuleTree", "compress"]

"""qcow2 (QEMU's docs/interop/qcow2): the header and all that is decided about an image.

The data path, which serves reads and writes and walks tables, is the engine's (`engine.block`).
"""

from ostler.block.formats.qcow2.image import Qcow2Image
from ostler.block.registry import Format

__all__ = ["FORMAT", "Qcow2Image"]

FORMAT = Format(open=Qcow2Image, creation="ostler.block.formats.qcow2.create")

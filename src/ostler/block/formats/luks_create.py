"""New LUKS1 images."""

from __future__ import annotations

from ostler.block.crypto import luks1
from ostler.block.crypto.options import LuksOptions
from ostler.block.image import ImageFile, ImageWriter

Options = LuksOptions


def prepare(name: str, size_bytes: int, options: LuksOptions) -> ImageWriter:
    """What writes a header with one key slot; the content is what the file holds: noise.

    `DiskError` for options that no image has.
    """
    options.check(name)
    header, key = luks1.new_header(
        options.spec, options.hash_alg, options.key_bytes, options.iter_time
    )

    def write(file: ImageFile) -> None:
        file.truncate(0)
        file.truncate(header.payload_offset + size_bytes)
        luks1.add_key(file.name, header, key, options.secret, options.iter_time, file.write)
        file.flush()

    return write

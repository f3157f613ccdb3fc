"""New LUKS1 images."""

from __future__ import annotations

from ostler.block.crypto import luks1
from ostler.block.crypto.options import LuksOptions
from ostler.block.image import ImageFile

Options = LuksOptions


def create(file: ImageFile, size_bytes: int, options: LuksOptions) -> None:
    """A header with one key slot; the content is what the file holds: noise."""
    options.check(file.name)
    header, key = luks1.new_header(
        options.spec, options.hash_alg, options.key_bytes, options.iter_time
    )
    file.truncate(header.payload_offset + size_bytes)
    luks1.add_key(file.name, header, key, options.secret, options.iter_time, file.write)
    file.flush()

"""What Linux can start from: archives, packed archives, and images of old file systems."""

from __future__ import annotations

# Where each begins, and with what. Packed: Linux's lib/decompress.c; file systems:
# init/do_mounts_rd.c.
MAGICS = (
    (0, b"070701"),
    (0, b"070702"),
    (0, b"\x1f\x8b"),
    (0, b"\x1f\x9e"),
    (0, b"BZh"),
    (0, b"\x5d\0\0"),
    (0, b"\xfd7zXZ\0"),
    (0, b"\x89LZO\0\r\n\x1a\n"),
    (0, b"\x02\x21L\x18"),
    (0, b"\x28\xb5\x2f\xfd"),
    (0, b"-rom1fs-"),
    (0, b"\x45\x3d\xcd\x28"),
    (0, b"hsqs"),
    (1080, b"\x53\xef"),
)
# Zeros may be before an archive, as they are between two.
PADDING_BYTES = 4096


def is_readable(image: memoryview) -> bool:
    """Whether `image` begins as something that Linux takes for an initrd."""
    begin = bytes(image[:PADDING_BYTES]).lstrip(b"\0")
    packed = any(offset == 0 and begin.startswith(magic) for offset, magic in MAGICS)
    return packed or any(image[offset : offset + len(magic)] == magic for offset, magic in MAGICS)

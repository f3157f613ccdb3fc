"""What a parser reads from, and how it says what is wrong there.

A `ByteSource` is the part of an `ImageFile` that parsers of read-only formats need, so that a test
or a fuzzer can hand them bytes.
"""

from __future__ import annotations

from typing import Protocol

from ostler.errors import DiskError


class ByteSource(Protocol):
    """Bytes by offset."""

    @property
    def name(self) -> str:
        """What messages call it: a path or a URL."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes at `offset`, fewer only where the source ends."""

    def close(self) -> None:
        """Release what is held."""


class MemorySource:
    """Bytes in memory."""

    def __init__(self, content: bytes | bytearray, name: str = "memory") -> None:
        self.name = name
        self.content = content

    @property
    def size_bytes(self) -> int:
        """As many as there are now."""
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes, fewer where they end."""
        return bytes(self.content[offset : offset + length])

    def close(self) -> None:
        """Nothing is held."""


def damaged(source: ByteSource, field: str, problem: str) -> DiskError:
    """The error for a `field` of the image's own description that cannot be right."""
    return DiskError(
        f"{source.name}: damaged image: {field} {problem}; restore it from a copy, or convert"
        " what is left with the program that wrote it"
    )


def unsupported(source: ByteSource, feature: str) -> DiskError:
    """The error for a sound image that uses what is not read here."""
    return DiskError(
        f"{source.name}: {feature} is not supported; convert the image with the program that"
        " wrote it"
    )


def read_field(source: ByteSource, offset: int, length: int, field: str) -> bytes:
    """The bytes of a structure named `field`; where the source does not have them, `DiskError`."""
    size = source.size_bytes
    if 0 <= offset <= size - length:
        content = source.read(offset, length)
        if len(content) == length:
            return content
    raise damaged(
        source, field, f"at {offset:#x} is beyond the {size} bytes of the file (truncated?)"
    )

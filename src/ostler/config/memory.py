"""The memory of a guest."""

from __future__ import annotations

import msgspec

from ostler.config.options import build, split_options
from ostler.config.size import format_size, parse_size
from ostler.errors import ConfigError

PAGE_BYTES = 4096
MIN_BYTES = 2 << 20
# Above it lie the PCI window and the end of what a 46-bit guest physical address reaches.
MAX_BYTES = 32 << 40


class MemoryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much RAM, in bytes; `force`: also more than Linux could start with on this host."""

    size_bytes: int = 512 << 20
    force: bool = False

    def __post_init__(self) -> None:
        size = format_size(self.size_bytes)
        if not MIN_BYTES <= self.size_bytes <= MAX_BYTES:
            low, high = format_size(MIN_BYTES), format_size(MAX_BYTES)
            raise ConfigError(f"--memory {size}: a guest has {low} to {high} of memory")
        if self.size_bytes % PAGE_BYTES:
            raise ConfigError(f"--memory {size}: memory comes in pages; give a multiple of 4K")

    @classmethod
    def parse(cls, text: str | int) -> MemoryConfig:
        """From `512M`, `4G`, a number of bytes, or `16T,force=on`."""
        if not isinstance(text, str):
            return cls(parse_size(text, "--memory"))
        size, values = split_options(text, "--memory")
        size_bytes = parse_size(size, "--memory")
        return build(cls, values, f"--memory {size}", size_bytes=size_bytes)

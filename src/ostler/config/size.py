"""Sizes as people write them: `512M`, `4G`, `0x10000`. Units are binary: K is 1024 bytes."""

from __future__ import annotations

import re

from ostler.errors import ConfigError

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
PATTERN = r"(0x[0-9a-f]+|[0-9]+)\s*([kmgt]?)(?:i?b)?"


def parse_size(text: object, what: str) -> int:
    """Bytes that `text` says; `what` names it in the `ConfigError` for what is no size."""
    if isinstance(text, int):
        return text
    # Compiled when it is first needed: most command lines have no size.
    match = re.fullmatch(PATTERN, text.strip(), re.IGNORECASE) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"{what} {text!r} is not a size; write 512M or 4G, say")
    number, unit = match.groups()
    return int(number, 0) * UNITS[unit.upper()]


def format_size(size: int) -> str:
    """The shortest exact way to write `size` bytes: `512M`, `4G`, `4097`."""
    for unit in "TGMK":
        if size and size % UNITS[unit] == 0:
            return f"{size // UNITS[unit]}{unit}"
    return str(size)

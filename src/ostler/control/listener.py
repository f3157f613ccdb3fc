"""Listening unix sockets that belong to a VM, in place of what a dead one left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ostler.errors import ConfigError
from ostler.unix_socket import remove_stale

# What `sun_path` holds, less a NUL.
MAX_PATH_BYTES = 107
BACKLOG = 64


@contextmanager
def listening(path: Path, option: str, reserve_bytes: int = 0) -> Iterator[socket.socket]:
    """A socket listening at `path`, which goes with the block; `option` names it in errors.

    `reserve_bytes` is what will be added to the path to name other sockets.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES - reserve_bytes:
        raise ConfigError(f"{option}: {path} is too long for a unix socket; give a shorter path")
    with socket.socket(socket.AF_UNIX) as listener:
        remove_stale(path)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise ConfigError(f"{option}: {path}: {error.strerror}; give another path") from error
        try:
            listener.listen(BACKLOG)
            yield listener
        finally:
            path.unlink(missing_ok=True)

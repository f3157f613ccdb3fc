"""Listening unix sockets that belong to a VM, in place of what a dead one left behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ostler.errors import ConfigError

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
        _remove_stale(path)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise ConfigError(f"{option}: {path}: {error.strerror}; give another path") from error
        try:
            listener.listen(BACKLOG)
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at any more; anything else stays for `bind` to meet."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # `bind` says what is wrong with it

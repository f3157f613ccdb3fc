"""Unix sockets in the file system."""

from __future__ import annotations

import socket
from pathlib import Path


def remove_stale(path: Path) -> bool:
    """Remove a socket file that nobody listens at any more; whether somebody does listen.

    Anything else at `path` stays, for `bind` to meet and to say what is wrong with it.
    """
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return False
        except OSError:
            return False
    return True

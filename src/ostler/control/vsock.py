"""The host's ends of a VM's virtio-vsock device, unix sockets as Firecracker has them.

A program that connects to the device's socket and writes `CONNECT <port>\\n` is connected to the
guest's listener at that port once `OK <port>\\n` has come back; its connection is closed where
nobody listens, or no driver is loaded. A guest that connects to port n of the host (context id 2)
reaches whoever listens at the device's path with `_n` added.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ostler.config import MachineConfig, VirtioVsockConfig
from ostler.control.listener import BACKLOG, listening
from ostler.errors import ConfigError, GuestError, WaitTimeout

# `_` and the digits of a port.
PORT_BYTES = 11
CONNECT_TIMEOUT_S = 10.0


@contextmanager
def open_vsock(config: MachineConfig) -> Iterator[tuple[int, str] | None]:
    """The listening descriptor and the path of the configured device, if there is one.

    Without a path in the configuration it is in a folder of its own, which goes with the block.
    """
    devices = [device for device in config.devices if isinstance(device, VirtioVsockConfig)]
    if not devices:
        yield None
    elif devices[0].path:
        with _listening(Path(devices[0].path)) as end:
            yield end
    else:
        with (
            tempfile.TemporaryDirectory(prefix="ostler-vsock-") as folder,
            _listening(Path(folder, "vsock")) as end,
        ):
            yield end


@contextmanager
def _listening(path: Path) -> Iterator[tuple[int, str]]:
    with listening(path, "--vsock", PORT_BYTES) as listener:
        yield listener.fileno(), str(path)


class Vsock:
    """`vm.vsock`: sockets between programs of the host and the guest."""

    def __init__(self) -> None:
        self.end: tuple[int, str] | None = None

    @property
    def path(self) -> Path:
        """The device's socket; `ConfigError` where the machine has none, or does not run."""
        if self.end is None:
            raise ConfigError("this VM has no vsock now; give it a virtio-vsock and start it")
        return Path(self.end[1])

    def connect(self, port: int, timeout: float = CONNECT_TIMEOUT_S) -> socket.socket:
        """A stream to the guest's listener at `port`.

        `GuestError` when nobody listens there, or the guest has no driver (yet); `WaitTimeout` when
        the guest does not answer within `timeout` seconds.
        """
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.settimeout(timeout)
            stream.connect(str(self.path))
            stream.sendall(f"CONNECT {port}\n".encode())
            self._await_answer(stream, port)
            stream.settimeout(None)
        except (ConnectionResetError, BrokenPipeError) as error:
            stream.close()
            raise _nobody(port) from error
        except TimeoutError as error:
            stream.close()
            raise WaitTimeout(f"the guest has not answered at vsock port {port}") from error
        except BaseException:
            stream.close()
            raise
        return stream

    def _await_answer(self, stream: socket.socket, port: int) -> None:
        answer = b""
        # Byte by byte: what follows the line is the guest's.
        while not answer.endswith(b"\n"):
            byte = stream.recv(1)
            if not byte:
                raise _nobody(port)
            answer += byte

    def listen(self, port: int) -> socket.socket:
        """A listening socket for what the guest connects to at `port` of the host (CID 2).

        Its file goes when the machine's folder does, or is yours to remove where you gave the path.
        """
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(f"{self.path}_{port}")
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener


def _nobody(port: int) -> GuestError:
    return GuestError(f"nobody in the guest listens at vsock port {port}; wait until it does")

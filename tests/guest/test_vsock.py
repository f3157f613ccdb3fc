"""Linux's vsock driver against programs of the host."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable

import pytest
from stock import END_S, Boot, start_shell

import ostler
from guests import native
from guests.fetch import Kernel
from guests.images import initrd
from ostler.errors import GuestError

pytestmark = pytest.mark.guest

PORT = 5000
MIB = 1 << 20
BLOB = hashlib.shake_128(b"vsock").digest(4 * MIB)


@pytest.fixture
def start(boot: Boot, cloud: Kernel) -> Callable[..., ostler.VM]:
    image = initrd(
        cloud,
        programs={"/bin/vsock": native.vsock()},
        drivers=("vmw_vsock_virtio_transport",),
    )

    def started(*options: str) -> ostler.VM:
        device = ",".join(("virtio-vsock,cid=42", *options))
        return start_shell(boot, cloud, initrd=image, devices=[device])

    return started


def receive_all(stream: socket.socket) -> bytes:
    """What comes until the end."""
    stream.settimeout(END_S)
    pieces = []
    while piece := stream.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("layout", ["packed=on", "packed=off"])
def test_host_connects_to_the_guest_and_gets_back_what_it_sends(
    start: Callable[..., ostler.VM], layout: str
) -> None:
    vm = start(layout)
    vm.serial.write(f"vsock echo {PORT}\n")
    vm.serial.wait_for("listening", timeout=END_S)
    with vm.vsock.connect(PORT) as stream:

        def send() -> None:
            stream.sendall(BLOB)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert receive_all(stream) == BLOB
        sender.join()


def test_guest_connects_to_the_host_and_both_see_every_byte(
    start: Callable[..., ostler.VM],
) -> None:
    vm = start()
    with vm.vsock.listen(PORT) as listener:
        got: list[bytes] = []

        def serve() -> None:
            stream, _ = listener.accept()
            with stream:
                got.append(receive_all(stream))
                stream.sendall(b"the host has it\n")

        server = threading.Thread(target=serve)
        server.start()
        said = vm.serial.run(f"dd if=/dev/zero bs=1M count=2 2>/dev/null | vsock send 2 {PORT}")
        server.join()
    assert got == [bytes(2 * MIB)]
    assert said == "the host has it\n"


def test_connection_nobody_waits_for_is_refused_both_ways(start: Callable[..., ostler.VM]) -> None:
    vm = start()
    assert "reset" in vm.serial.run(f"vsock refuse 2 {PORT}")
    with pytest.raises(GuestError, match="nobody in the guest listens at vsock port 5000"):
        vm.vsock.connect(PORT)


def test_caller_of_a_guest_without_the_driver_is_refused_at_once(boot: Boot, cloud: Kernel) -> None:
    vm = start_shell(boot, cloud, devices=["virtio-vsock,cid=42"], net="none")
    with pytest.raises(GuestError, match="nobody in the guest listens"):
        vm.vsock.connect(PORT)


def test_connection_ends_when_the_guests_program_dies(start: Callable[..., ostler.VM]) -> None:
    vm = start()
    vm.serial.write(f"vsock echo {PORT} & echo ok\n")
    vm.serial.wait_for("listening", timeout=END_S)
    with vm.vsock.connect(PORT) as stream:
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        vm.serial.write("kill -9 $!\n")
        assert receive_all(stream) == b""

"""The unix socket of a vsock device: where it is, and what is in its way."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from ostler.config import MachineConfig, VirtioVsockConfig
from ostler.control.vsock import Vsock, open_vsock
from ostler.errors import ConfigError, GuestError, WaitTimeout


def machine(path: str = "") -> MachineConfig:
    return MachineConfig(kernel=Path("k"), devices=(VirtioVsockConfig(3, path),))


def test_socket_without_a_path_has_a_folder_that_goes_with_it() -> None:
    with open_vsock(machine()) as end:
        assert end is not None
        path = Path(end[1])
        assert path.is_socket()
    assert not path.parent.exists()
    with open_vsock(MachineConfig(kernel=Path("k"))) as end:
        assert end is None


def test_socket_left_over_is_replaced_and_one_in_use_or_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            pytest.raises(ConfigError, match="already in use"),
            open_vsock(machine(path=str(path))),
        ):
            pass
    with open_vsock(machine(path=str(path))) as end:
        assert end is not None
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(ConfigError, match="already in use"), open_vsock(machine(path=str(path))):
        pass
    assert path.read_text() == "precious"


def test_socket_path_too_long_or_in_no_folder_is_refused(tmp_path: Path) -> None:
    for path, why in ((f"/tmp/{'x' * 120}", "too long"), (f"{tmp_path}/no/v", "No such file")):
        with pytest.raises(ConfigError, match=why), open_vsock(machine(path=path)):
            pass


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2", "0 to 2 are taken"),
        ("4294967295", "3 to 4294967294"),
        ("x", "number"),
        ("3,a=b", "no option"),
    ],
)
def test_context_id_that_no_guest_can_have_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        VirtioVsockConfig.parse(text)


def test_connect_tells_a_refusal_from_a_guest_that_is_silent(tmp_path: Path) -> None:
    vsock = Vsock()
    with pytest.raises(ConfigError, match="no vsock now"):
        vsock.connect(1)
    with socket.socket(socket.AF_UNIX) as device:
        device.bind(str(tmp_path / "v"))
        device.listen()
        vsock.end = (device.fileno(), str(tmp_path / "v"))
        with pytest.raises(WaitTimeout, match="port 7"):
            vsock.connect(7, timeout=0.01)
        device.accept()[0].close()
        device.settimeout(20)

        def hang_up_on_it() -> None:
            caller, _ = device.accept()
            assert caller.recv(64) == b"CONNECT 8\n"
            caller.close()

        hang_up = threading.Thread(target=hang_up_on_it)
        hang_up.start()
        with pytest.raises(GuestError, match="port 8"):
            vsock.connect(8)
        hang_up.join()

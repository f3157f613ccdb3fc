"""The SCSI host: its configuration, its events, and which units a machine's disks become."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ostler.config import DiskConfig, MachineConfig, ScsiGenericConfig, parse_device
from ostler.devices.virtio.scsi import CDB_SIZE_OFFSET, SENSE_SIZE_OFFSET, VirtioScsi
from ostler.engine import VirtioWorkers, VirtualMachine
from ostler.errors import ConfigError, DiskError, HostError, StateError
from ostler.machine.describe import draw
from ostler.machine.disks import GuestDisk, open_disks
from ostler.testing.pci import FakeImage, FakeScsi, FakeWorkers

CDB_SIZES = slice(20, 28)


def backend(scsi: VirtioScsi) -> FakeScsi:
    assert isinstance(scsi._bus, FakeScsi)
    return scsi._bus


def events(scsi: VirtioScsi) -> list[tuple[int, bytes, int]]:
    feed: Any = scsi._events
    return [struct.unpack("<I8sI", message) for message in feed.messages]


def test_sizes_of_the_driver_are_taken_within_their_limits() -> None:
    scsi = VirtioScsi(FakeWorkers())
    assert scsi.config()[CDB_SIZES] == struct.pack("<II", 96, 32)
    scsi.write(SENSE_SIZE_OFFSET, 4, 18)
    scsi.write(CDB_SIZE_OFFSET, 4, 16)
    scsi.write(CDB_SIZE_OFFSET, 2, 99)
    assert scsi.config()[CDB_SIZES] == struct.pack("<II", 18, 16)
    assert backend(scsi).sizes == (16, 18)
    scsi.write(SENSE_SIZE_OFFSET, 4, 0xFFFF_FFFF)
    scsi.write(CDB_SIZE_OFFSET, 4, 0xFFFF_FFFF)
    assert backend(scsi).sizes == (260, 252)
    saved = scsi.save()
    scsi.reset()
    assert backend(scsi).sizes == (32, 96)
    scsi.load(saved)
    assert backend(scsi).sizes == (260, 252)
    with pytest.raises(StateError):
        scsi.load({**saved, "cdb_bytes": 261})


def test_units_that_come_and_go_are_told_to_the_driver() -> None:
    scsi = VirtioScsi(FakeWorkers())
    scsi.attach(1, 2, FakeImage())
    scsi.attach(0, 300, FakeImage(readonly=True), disc=True, serial="S")
    scsi.capacity_changed(1, 2)
    scsi.detach(1, 2)
    near, far = bytes([1, 1, 0, 2, 0, 0, 0, 0]), bytes([1, 0, 0x41, 0x2C, 0, 0, 0, 0])
    assert events(scsi) == [(1, near, 1), (1, far, 1), (3, near, 0x092A), (1, near, 2)]
    unit = backend(scsi).units.pop((0, 300))
    assert (unit["disc"], unit["readonly"], unit["serial"]) == (True, True, b"S")
    assert backend(scsi).units == {}
    scsi.reset()
    assert events(scsi) == []
    for target, lun, why in ((64, 0, "0 to 63"), (0, 1 << 14, "units to 16383"), (0, 300, "there")):
        with pytest.raises(ConfigError, match=why):
            scsi.attach(target, lun, FakeImage())
    with pytest.raises(ConfigError, match="there is none"):
        scsi.detach(5, 5)


def test_discs_are_changed_in_drives_only() -> None:
    scsi, disc = VirtioScsi(FakeWorkers()), FakeImage()
    scsi.attach(1, 2, disc, disc=True)
    scsi.eject(1, 2)
    assert backend(scsi).units[1, 2]["disk"] is None
    scsi.insert(1, 2, disc)
    assert backend(scsi).units[1, 2]["disk"] is disc.disk
    scsi.attach(0, 0, FakeImage())
    for target in (0, 5):
        with pytest.raises(ConfigError, match="there is no CD-ROM drive"):
            scsi.eject(target, 0)
        with pytest.raises(ConfigError, match="there is no CD-ROM drive"):
            scsi.insert(target, 0, disc)


def units(*texts: str) -> set[tuple[int, int]]:
    config = MachineConfig(kernel=Path("k"), disks=tuple(map(DiskConfig.parse, texts)), nets=())
    image: Any = SimpleNamespace(size_bytes=1 << 20)
    board = draw(config, [GuestDisk(image, image, False, 4096) for _ in texts])
    try:
        host: Any = board.devices["scsi"]
        assert isinstance(host.device, VirtioScsi)
        return host.device.units
    finally:
        board.close()


def test_disks_become_units_of_the_next_free_target_or_the_one_they_name() -> None:
    found = units("a,bus=scsi", "b,bus=scsi,target=1", "c,media=cdrom", "d,bus=scsi,target=1,lun=7")
    assert found == {(0, 0), (1, 0), (2, 0), (1, 7)}
    with pytest.raises(ConfigError, match=r"--disk b: SCSI unit 3:0 is there already"):
        units("a,bus=scsi,target=3", "b,bus=scsi,target=3")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a,bus=ide", "no bus 'ide'; there is: virtio, scsi"),
        ("a,media=tape", "no media 'tape'"),
        ("a,media=cdrom,bus=virtio", "say bus=scsi"),
        ("a,lun=1", "are for bus=scsi"),
        ("a,target=1", "are for bus=scsi"),
    ],
)
def test_disk_at_a_place_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        DiskConfig.parse(text)


def test_disc_may_be_in_two_drives_since_nobody_writes_to_it() -> None:
    disks = tuple(DiskConfig.parse("a,media=cdrom") for _ in range(2))
    assert not disks[0].writes
    assert MachineConfig(kernel=Path("k"), disks=disks).disks == disks


@pytest.mark.skipif(os.geteuid() != 0, reason="making device nodes takes root")
def test_scsi_device_itself_is_refused_with_its_cure(tmp_path: Path) -> None:
    node = tmp_path / "sg0"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(21, 0))
    config = MachineConfig(kernel=Path("k"), disks=(DiskConfig.parse(f"{node},bus=scsi"),))
    cure = "give its block device, .* or have commands passed on: --device scsi-generic,path="
    with pytest.raises(DiskError, match=cure), open_disks(config):
        pass


def test_device_of_the_host_is_the_only_unit_of_a_host_of_its_own() -> None:
    asked = parse_device("scsi-generic,path=/dev/sg7")
    assert asked == ScsiGenericConfig("/dev/sg7")
    board = draw(MachineConfig(kernel=Path("k"), devices=(asked,), nets=()))
    try:
        host: Any = board.devices["scsi-generic:/dev/sg7"]
        assert host.device.units == {(0, 0)}
    finally:
        board.close()
    with pytest.raises(ConfigError, match="it is there twice"):
        draw(MachineConfig(kernel=Path("k"), devices=(asked, asked), nets=()))


def test_limit_of_a_device_of_the_host_is_told_to_the_driver() -> None:
    scsi = VirtioScsi(FakeWorkers())
    scsi.pass_through("/dev/sg7")
    assert backend(scsi).units == {(0, 0): {"path": "/dev/sg7"}}
    (most,) = struct.unpack_from("<I", scsi.config(), 8)
    assert most == 1024
    with pytest.raises(ConfigError, match="there already"):
        scsi.pass_through("/dev/sg8")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (FileNotFoundError(errno.ENOENT, "x"), "there is no such device; lsscsi -g lists"),
        (PermissionError(errno.EACCES, "x"), "may not be opened for reading and writing; run as"),
        (OSError(errno.EBUSY, "x"), "in use; unmount it"),
        (OSError(errno.EIO, "Input/output error"), "cannot be opened: Input/output error"),
        (ValueError("it is no SCSI device"), "it is no SCSI device; lsscsi -g"),
    ],
)
def test_device_of_the_host_that_cannot_be_had_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(FakeScsi, "pass_through", refuse)
    with pytest.raises(HostError, match=f"^/dev/sg7: .*{why}"):
        VirtioScsi(FakeWorkers()).pass_through("/dev/sg7")


def test_device_of_the_host_is_let_go_of_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []

    def detach(_: FakeScsi, target: int, lun: int) -> bool:
        taken.append((target, lun))
        return True

    monkeypatch.setattr(FakeScsi, "pass_through", lambda *_: 1 << 20)
    monkeypatch.setattr(FakeScsi, "detach", detach)
    device = VirtioScsi(FakeWorkers())
    device.pass_through("/dev/sg7")
    device.close()
    device.close()
    assert taken == [(0, 0)]


def test_what_is_no_scsi_device_is_refused_by_the_engine(tmp_path: Path) -> None:
    vm = VirtualMachine("soft")
    image = tmp_path / "image"
    image.write_bytes(bytes(512))
    for path, why in ((image, "no SCSI device"), (tmp_path / "nothing", "no such device")):
        with pytest.raises(HostError, match=why):
            VirtioScsi(VirtioWorkers(vm.memory)).pass_through(str(path))

"""Linux's 9p client on a directory of the host."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from stock import END_S, Boot, start_shell

import ostler
from guests.fetch import kernel
from guests.images import initrd

pytestmark = pytest.mark.guest

BLOB = hashlib.shake_128(b"9p").digest(3 << 20)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    shared = tmp_path / "shared"
    (shared / "folder").mkdir(parents=True)
    (shared / "blob").write_bytes(BLOB)
    (shared / "escape").symlink_to("/etc/hostname")
    for number in range(300):
        (shared / "folder" / f"{number}.txt").write_text(f"{number}\n")
    return shared


@pytest.fixture
def vm(boot: Boot, shared: Path) -> ostler.VM:
    # Debian's kernel for clouds has no 9p.
    full = kernel("full")
    devices = [f"virtio-9p,path={shared},mount_tag={name}" for name in ("host", "fixed")]
    devices[1] += ",readonly=on"
    image = initrd(full, drivers=("9p", "9pnet_virtio"))
    vm = start_shell(boot, full, initrd=image, devices=devices)
    vm.serial.run("mkdir /host /fixed; mount -t 9p -o trans=virtio,version=9p2000.L host /host")
    vm.serial.run("mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 fixed /fixed")
    return vm


def test_directory_of_the_host_is_a_file_system_of_the_guest(vm: ostler.VM, shared: Path) -> None:
    digest = hashlib.sha256(BLOB).hexdigest()
    for place in ("/host", "/fixed"):
        assert digest in vm.serial.run(f"sha256sum {place}/blob")
        assert vm.serial.run(f"ls {place}/folder | wc -l").strip() == "300"
        assert vm.serial.run(f"cat {place}/folder/*.txt | wc -l").strip() == "300"
    # Several programs at once.
    copies = "for n in 1 2 3 4; do cp /host/blob /host/copy$n & done; wait; sync"
    vm.serial.run(copies, timeout=END_S)
    assert all((shared / f"copy{number}").read_bytes() == BLOB for number in range(1, 5))
    vm.serial.run("cp /host/blob /host/copy; sync; mv /host/copy /host/folder/moved")
    assert (shared / "folder/moved").read_bytes() == BLOB
    vm.serial.run("cd /host; mkdir -p a/b; echo text > a/b/c; ln -s c a/b/l; ln a/b/c a/hard; cd /")
    assert (shared / "a/b/l").read_text() == "text\n"
    assert (shared / "a/hard").stat().st_nlink == 2
    vm.serial.run("chmod 640 /host/a/b/c; truncate -s 2 /host/a/b/c; touch -d @1000 /host/a/b/c")
    found = (shared / "a/b/c").stat()
    assert (found.st_mode & 0o777, found.st_size, found.st_mtime) == (0o640, 2, 1000)
    (shared / "late").write_text("from the host")
    assert vm.serial.run("cat /host/late") == "from the host"
    vm.serial.run("rm -r /host/a /host/folder")
    assert not (shared / "folder").exists()
    assert int(vm.serial.run("df /host | tail -1").split()[1]) > 0


def test_links_lead_into_the_guest_and_read_only_stays_so(vm: ostler.VM, shared: Path) -> None:
    vm.serial.run("mkdir -p /etc; echo the guest > /etc/hostname")
    assert vm.serial.run("cat /host/escape") == "the guest\n"
    assert "Read-only" in vm.serial.run("echo x 2>&1 > /fixed/new", check=False)
    assert "Read-only" in vm.serial.run("rm /fixed/blob 2>&1", check=False)
    assert (shared / "blob").exists()
    assert not (shared / "new").exists()

"""KVM's binary statistics: made-up ones, damaged ones, and this kernel's own."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator

import pytest

from ostler.control.kvm_stats import DESCRIPTION, HEADER, read_scalars
from ostler.control.stats import collect
from ostler.engine import VirtualMachine
from ostler.errors import HostError

CUMULATIVE, INSTANT, LOG_HISTOGRAM = 0, 1, 4
NAME_BYTES = 48
KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_GET_STATS_FD = 0xAE01, 0xAE41, 0xAECE


def statistics(*rows: tuple[str, int, list[int]]) -> bytes:
    """The file with those statistics: name, type and numbers."""
    descriptions, data = b"", b""
    for name, kind, values in rows:
        head = DESCRIPTION.pack(kind, 0, len(values), len(data), 0)
        descriptions += head + name.encode().ljust(NAME_BYTES, b"\0")
        data += struct.pack(f"<{len(values)}Q", *values)
    at = HEADER.size + NAME_BYTES
    header = HEADER.pack(0, NAME_BYTES, len(rows), HEADER.size, at, at + len(descriptions))
    return header + b"kvm-1".ljust(NAME_BYTES, b"\0") + descriptions + data


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("statistics")
    yield fd
    os.close(fd)


def test_statistics_of_one_number_are_read_by_name(file: int) -> None:
    rows = [("exits", CUMULATIVE, [7]), ("polls", LOG_HISTOGRAM, [1] * 32), ("mode", INSTANT, [1])]
    os.write(file, statistics(*rows))
    assert read_scalars(file) == {"exits": 7, "mode": 1}


def test_statistics_without_any_are_none(file: int) -> None:
    os.write(file, statistics())
    assert read_scalars(file) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"short", HEADER.pack(0, 1 << 31, 1 << 31, 0, 0, 0), statistics(("exits", 0, [7]))[:-1]],
)
def test_descriptor_of_something_else_is_an_os_error(file: int, content: bytes) -> None:
    os.write(file, content)
    with pytest.raises(OSError, match="statistics"):
        read_scalars(file)


def test_kernel_s_own_statistics_of_a_new_vcpu_name_its_exits() -> None:
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"/dev/kvm: {error.strerror}")
    fds = [kvm]
    try:
        for request in (KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_GET_STATS_FD):
            fds.append(fcntl.ioctl(fds[-1], request, 0))
        found = read_scalars(fds[-1])
    finally:
        for fd in fds:
            os.close(fd)
    assert {"exits", "io_exits", "mmio_exits", "halt_exits"} <= found.keys()
    assert found["exits"] == 0


def test_machine_has_statistics_of_its_own_under_kvm_alone() -> None:
    soft = VirtualMachine("soft")
    assert collect(soft, ()).kernel == {}
    try:
        vm = VirtualMachine("kvm")
    except HostError as error:
        pytest.skip(str(error))
    assert vm.statistics_fd is not None
    assert "remote_tlb_flush" in read_scalars(vm.statistics_fd)
    assert collect(vm, ()).accelerator == "kvm"

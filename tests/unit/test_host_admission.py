"""Whether a host is asked for more memory than it can give."""

from __future__ import annotations

from pathlib import Path

import pytest
from host_tree import FakeHost, make_tree

from ostler.config import MemoryConfig
from ostler.errors import HostError
from ostler.host.admission import admit_memory, free_bytes, rounded

GIB, TIB = 1 << 30, 1 << 40
MEMINFO = """\
MemTotal:       25165824 kB
MemAvailable:   23068672 kB
SwapTotal:       2097152 kB
SwapFree:        1048576 kB
CommitLimit:    14680064 kB
Committed_AS:    2097152 kB
"""


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    files = {"proc/meminfo": MEMINFO, "proc/sys/vm/overcommit_memory": "0"}
    return FakeHost(make_tree(tmp_path, files))


def test_memory_that_is_free_is_admitted_in_silence(host: FakeHost) -> None:
    assert free_bytes(host) == 23 * GIB
    assert admit_memory(MemoryConfig(23 * GIB), host) is None


def test_memory_past_what_is_free_is_warned_about(host: FakeHost) -> None:
    warning = admit_memory(MemoryConfig(24 * GIB), host)
    assert warning is not None
    assert warning.startswith("warning: --memory 24G is more than the 23G that this host has free")
    assert "Linux" not in warning


def test_memory_whose_page_table_alone_fills_the_host_is_refused_unless_forced(
    host: FakeHost,
) -> None:
    with pytest.raises(
        HostError,
        match=r"^--memory 30T: Linux fills 480G of it at its start, and this host has 23G free,"
        r" swap included; give the guest less, or .+ say --memory 30T,force=on$",
    ):
        admit_memory(MemoryConfig(30 * TIB), host)
    warning = admit_memory(MemoryConfig(30 * TIB, force=True), host)
    assert warning is not None
    assert "; Linux fills 480G of it at its start: a guest that fills it is killed;" in warning


def test_memory_whose_page_table_fills_most_of_the_host_is_warned_about(host: FakeHost) -> None:
    warning = admit_memory(MemoryConfig(1 * TIB), host)
    assert warning is not None
    assert "; Linux fills 16G of it at its start: a guest that fills it is killed;" in warning


def test_memory_past_the_address_space_is_refused(host: FakeHost) -> None:
    host.limits["address space"] = 4 * GIB
    with pytest.raises(HostError, match=r"8G: .+ 4G of address space \(ulimit -v\); give"):
        admit_memory(MemoryConfig(8 * GIB), host)
    assert admit_memory(MemoryConfig(4 * GIB), host) is None


def test_memory_on_a_host_that_never_overcommits_is_refused_past_its_promise(
    host: FakeHost,
) -> None:
    make_tree(host.root, {"proc/sys/vm/overcommit_memory": "2"})
    assert admit_memory(MemoryConfig(12 * GIB), host) is None
    with pytest.raises(HostError, match=r"vm.overcommit_memory=2\), which is 12G; .+sysctl"):
        admit_memory(MemoryConfig(12 * GIB + 4096), host)


@pytest.mark.parametrize(
    ("group", "files", "left"),
    [
        ("/", {}, 23 * GIB),
        ("/a/b", {"a/memory.max": "4294967296"}, 4 * GIB),
        ("/a", {"a/memory.max": "max"}, 23 * GIB),
        ("/a", {"a/memory.max": str(64 * GIB)}, 23 * GIB),
        ("/", {"memory/v1/b/memory.limit_in_bytes": "4096"}, 4096),
    ],
)
def test_free_memory_is_no_more_than_the_control_groups_allow(
    host: FakeHost, group: str, files: dict[str, str], left: int
) -> None:
    make_tree(host.root, {"proc/self/cgroup": f"4:cpu,memory:/v1/b\n1:name=systemd:/x\n0::{group}"})
    make_tree(host.root / "sys/fs/cgroup", files)
    assert free_bytes(host) == left


def test_host_that_says_nothing_admits_everything(tmp_path: Path) -> None:
    assert admit_memory(MemoryConfig(30 * TIB), FakeHost(tmp_path)) is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (1, "1"), (1536, "1.5K"), (1 << 20, "1M"), (22 * GIB + GIB // 2, "22.5G"),
     (480 * GIB + 1, "480G"), (5000 * TIB, "5000T")],
)  # fmt: skip
def test_size_for_people_has_three_digits(size: int, text: str) -> None:
    assert rounded(size) == text

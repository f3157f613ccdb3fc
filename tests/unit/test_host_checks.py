"""What the checks say of hosts, one thing wrong at a time."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host_tree import FakeHost, make_tree

import ostler
from ostler.cli import invoke
from ostler.host import Report, Status
from ostler.host.checks import CHECKS
from ostler.host.checks.capabilities import WANTED
from ostler.host.speed import Speed

GOOD = {
    "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vme svm npt\n\nprocessor\t: 1\nflags\t\t: fpu",
    "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 2097152 kB\n"
    "SwapFree: 2097152 kB",
    "proc/sys/vm/overcommit_memory": "0",
    "proc/sys/kernel/seccomp/actions_avail": "kill_process kill_thread trap errno",
    "sys/module/kvm/parameters/halt_poll_ns": "200000",
    "sys/module/kvm_amd/parameters/npt": "Y",
    "sys/module/kvm_amd/parameters/nested": "1",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "512",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "500",
    "sys/kernel/mm/ksm/run": "1",
    "sys/kernel/mm/ksm/pages_sharing": "1234",
    "sys/kernel/iommu_groups/0/type": "DMA",
    "sys/kernel/iommu_groups/1/type": "DMA",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    "dev/kvm": "",
    "dev/vfio/vfio": "",
    "dev/vhost-net": "",
    "dev/vhost-vsock": "",
    "dev/net/tun": "",
}


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    host = FakeHost(make_tree(tmp_path, GOOD))
    host.capabilities = dict.fromkeys(WANTED, 1) | {"MAX_VCPUS": 1024, "NR_MEMSLOTS": 32764}
    return host


def look(host: FakeHost) -> Report:
    return Report(tuple(finding for check in CHECKS for finding in check(host)))


def test_host_with_everything_passes_in_every_line(host: FakeHost) -> None:
    report = look(host)
    assert [str(finding) for finding in report if finding.status is not Status.PASS] == []
    assert (report.status, report.exit_code) == (Status.PASS, 0)
    assert len({finding.subject for finding in report}) == len(report.findings)
    assert report["CPU virtualization"].said == "AMD-V (SVM)"
    assert report["nested page tables"].said == "NPT"
    assert report["KVM module"].said == "kvm_amd"
    assert report["KVM capabilities"].said.startswith("1024 CPUs and 32764 memory slots")
    assert report["kernel-mode speed"].said == "5,000 million instructions/s, 0.9 us an exit"
    assert report["huge page pools"].said == "500 of 512 pages of 2048kB free"
    assert report["KSM"].said == "on, 1234 pages saved at this moment"
    assert report["memory"].said == "guests can fill 6G, swap included"
    assert report["IOMMU"].said == "2 groups of devices"


FLAGS = "proc/cpuinfo"
AMD = "sys/module/kvm_amd/parameters"
INTEL = "sys/module/kvm_intel/parameters"
NO_AMD: dict[str, str | None] = {f"{AMD}/npt": None, f"{AMD}/nested": None}


@pytest.mark.parametrize(
    ("files", "subject", "status", "said"),
    [
        ({FLAGS: "flags : fpu"}, "CPU virtualization", "FAIL", "neither VMX nor SVM; enable VT-x"),
        ({FLAGS: "flags : fpu"}, "nested page tables", "WARN", "none without"),
        ({FLAGS: None}, "CPU virtualization", "FAIL", "neither VMX nor SVM"),
        ({FLAGS: "flags : vmx ept"}, "CPU virtualization", "PASS", "Intel VT-x"),
        ({FLAGS: "flags : vmx"}, "nested page tables", "WARN", "no EPT"),
        ({f"{AMD}/npt": "N"}, "KVM module", "WARN", "with npt off; modprobe -r kvm_amd"),
        ({f"{AMD}/npt": "0"}, "KVM module", "WARN", "modprobe kvm_amd npt=1"),
        ({f"{AMD}/nested": "0"}, "nested virtualization", "WARN", "kvm_amd nested=1"),
        ({f"{INTEL}/ept": "N"}, "KVM module", "WARN", "kvm_intel with ept off"),
        ({"dev/kvm": None}, "/dev/kvm", "FAIL", "it is not there; modprobe"),
        (
            {"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"},
            "transparent huge pages", "WARN", "never; echo madvise >",
        ),
        (
            {"sys/kernel/mm/transparent_hugepage/enabled": None},
            "transparent huge pages", "WARN", "built without",
        ),
        (
            {"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0"},
            "huge page pools", "WARN", "empty",
        ),
        ({"sys/kernel/mm/ksm/run": "0"}, "KSM", "WARN", "off, so like guests share no memory"),
        ({"sys/kernel/mm/ksm/run": None}, "KSM", "WARN", "built without"),
        ({"proc/meminfo": "MemAvailable: 1 kB\nSwapTotal: 0 kB"}, "swap", "WARN", "are killed"),
        ({"proc/sys/vm/overcommit_memory": "2"}, "overcommit", "WARN", "counts in full"),
        (
            {"sys/kernel/iommu_groups/0/type": None, "sys/kernel/iommu_groups/1/type": None},
            "IOMMU", "PASS", "2 groups",
        ),
        ({"dev/vfio/vfio": None}, "IOMMU", "PASS", "modprobe vfio-pci before"),
        ({"dev/vhost-net": None}, "/dev/vhost-net", "WARN", "not there; modprobe vhost_net"),
        ({"dev/net/tun": None}, "/dev/net/tun", "WARN", "not there; modprobe tun"),
        ({"sys/fs/cgroup/cgroup.controllers": None}, "control groups", "WARN", "not mounted"),
        (
            {"sys/fs/cgroup/cgroup.controllers": None, "sys/fs/cgroup/memory/memory.stat": ""},
            "control groups", "WARN", "version 1 (memory), so a machine is bounded group by group",
        ),
        (
            {"sys/fs/cgroup/cgroup.controllers": "cpu memory"},
            "control groups", "WARN", "without cpuset, io, pids; echo +cpuset +io +pids >",
        ),
        ({"proc/sys/kernel/seccomp/actions_avail": None}, "seccomp", "WARN", "no filters"),
        (
            {"sys/devices/system/clocksource/clocksource0/current_clocksource": "hpet"},
            "clock source", "WARN", "hpet, so each look at the time is a system call",
        ),
    ],
)  # fmt: skip
def test_host_with_other_files_says_so_with_a_cure(
    host: FakeHost, files: dict[str, str | None], subject: str, status: str, said: str
) -> None:
    make_tree(host.root, files)
    report = look(host)
    assert report[subject].status is Status(status)
    assert said in str(report[subject])
    assert (report.exit_code == 1) == any(line.status is Status.FAIL for line in report)


def without_modules(host: FakeHost) -> None:
    for parameter in (host.root / AMD).iterdir():
        parameter.unlink()
    (host.root / AMD).rmdir()
    (host.root / AMD).parent.rmdir()


def with_another_module(host: FakeHost) -> None:
    without_modules(host)
    make_tree(host.root, {"sys/module/kvm_pvm/parameters/force": "N"})


def without_iommu(host: FakeHost) -> None:
    (host.root / "sys/kernel/iommu_groups").rename(host.root / "elsewhere")


def answer(name: str, value: object) -> Callable[[FakeHost], None]:
    return lambda host: setattr(host, name, value)


def refuse(path: str, number: int) -> Callable[[FakeHost], None]:
    return lambda host: host.refused.update({path: number})


def lower(name: str, value: int) -> Callable[[FakeHost], None]:
    return lambda host: host.limits.update({name: value})


EPERM = OSError(errno.EPERM, "Operation not permitted")
ENOSYS = OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize(
    ("change", "subject", "status", "said"),
    [
        (
            without_modules,
            "KVM module",
            "FAIL",
            "neither kvm_intel nor kvm_amd is loaded; modprobe",
        ),
        (without_modules, "nested virtualization", "WARN", "it takes kvm_intel or kvm_amd"),
        (with_another_module, "KVM module", "WARN", "kvm_pvm, which is not one for VMX or SVM"),
        (without_iommu, "IOMMU", "WARN", "no device can be passed to a guest; enable VT-d"),
        (refuse("/dev/kvm", errno.EACCES), "/dev/kvm", "FAIL", "may not open it; usermod -aG kvm"),
        (
            refuse("/dev/kvm", errno.EBUSY),
            "/dev/kvm",
            "FAIL",
            "refused by the test; see what dmesg",
        ),
        (refuse("/dev/vhost-vsock", errno.EACCES), "/dev/vhost-vsock", "WARN", "setfacl"),
        (answer("landlock", ENOSYS), "Landlock", "WARN", "Function not implemented; boot with lsm"),
        (answer("userfaultfd", EPERM), "userfaultfd", "WARN", "sysctl vm.unprivileged_user"),
        (answer("io_uring", EPERM), "io_uring", "WARN", "plain system calls; allow it in the sec"),
        (answer("capabilities", "no KVM; load it"), "KVM capabilities", "FAIL", "no KVM; load it"),
        (answer("capabilities", {"MAX_VCPUS": 4}), "KVM capabilities", "WARN", "4 CPUs and 0 mem"),
        (answer("speed", Speed(1.6, 9e3)), "kernel-mode speed", "FAIL", "1.6 million instr"),
        (answer("speed", Speed(1.6, 9e3)), "kernel-mode speed", "FAIL", "; use --accel soft"),
        (answer("speed", Speed(4e3, 5e4)), "kernel-mode speed", "WARN", "50.0 us an exit; expect"),
        (answer("speed", "no KVM here"), "kernel-mode speed", "FAIL", "no KVM here"),
        (lower("open files", 1024), "limit on open files", "WARN", "1024, large guests need 4096"),
        (lower("open files", 4096), "limit on open files", "PASS", "4096"),
        (lower("processes", 100), "limit on processes", "WARN", "ulimit -u"),
        (lower("locked memory", 8 << 20), "limit on locked memory", "WARN", "8M, so no device"),
        (lower("address space", 1 << 30), "limit on address space", "WARN", "1G, which bounds"),
    ],
)
def test_host_that_answers_otherwise_says_so_with_a_cure(
    host: FakeHost, change: Callable[[FakeHost], None], subject: str, status: str, said: str
) -> None:
    change(host)
    finding = look(host)[subject]
    assert finding.status is Status(status)
    assert said in str(finding)


def test_io_uring_that_is_switched_off_has_another_cure(host: FakeHost) -> None:
    make_tree(host.root, {"proc/sys/kernel/io_uring_disabled": "2"})
    host.io_uring = EPERM
    assert "sysctl kernel.io_uring_disabled=0" in str(look(host)["io_uring"])


def test_empty_host_is_told_of_everything_in_one_line_each(tmp_path: Path) -> None:
    host = FakeHost(tmp_path)
    host.capabilities = host.speed = "there is no KVM here"
    report = look(host)
    assert report.exit_code == 1
    assert all("\n" not in str(finding) for finding in report)
    assert all(finding.cure for finding in report if finding.status is not Status.PASS)


def test_this_host_is_checked_and_says_what_it_is() -> None:
    report = ostler.host.check()
    assert report["memory"].status is Status.PASS
    device = report["/dev/kvm"].status
    assert device is (Status.PASS if Path("/dev/kvm").exists() else Status.FAIL)
    with pytest.raises(KeyError):
        report["weather"]


def test_command_prints_what_the_function_finds(capsys: pytest.CaptureFixture[str]) -> None:
    code = invoke(["host", "check", "--json"])
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == int(said["status"] == "FAIL")
    assert {"subject", "status", "said", "cure"} == set(said["findings"][0])
    assert invoke(["host", "check"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(said["findings"])
    assert {line.split()[0] for line in lines} <= {"PASS", "WARN", "FAIL"}

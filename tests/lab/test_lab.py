"""The `kvm` accelerator on the kernel's genuine KVM."""

from __future__ import annotations

import re
import shlex

import lab
import pytest

from guests import native
from guests.fetch import kernel
from guests.images import initrd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not lab.available(), reason=f"no {lab.QEMU}; apt-get install qemu-system-x86"
    ),
]

ENGINE = (
    "bus", "memory", "vcpu", "threads", "interrupts", "snapshot", "irqfd", "dirty_ring",
    "state_breadth", "split_irqchip", "coalesced",
)  # fmt: skip
# QEMU's CPU addresses 40 bits of memory, and does not give INT3 to a hypervisor that intercepts it.
BEYOND_QEMU = (
    "tests/unit/test_engine_memory.py::test_slot_of_two_tebibytes_costs_nothing[kvm]",
    "tests/unit/test_engine_vcpu.py::test_breakpoint_exits_to_the_debugger_before_it[kvm]",
)
# A guest that boots on a lab's CPU says nothing for longer than other jobs do.
LONGER = lab.Limits(seconds=3600, silence_s=600, memory="3G")
# Where the limit is reached, the output names the test under way, and where it stood. The plug-in
# of hypothesis wants a place to write to, and no test here needs it.
LOUD = "-v --color=no -p no:cacheprovider -p no:hypothesispytest -o faulthandler_timeout=180"


def test_engine_passes_its_tests_on_the_genuine_kvm_without_a_skip() -> None:
    files = " ".join(f"tests/unit/test_engine_{name}.py" for name in ENGINE)
    without = " ".join(f"--deselect {shlex.quote(test)}" for test in BEYOND_QEMU)
    done = lab.run(
        "grep -q svm /proc/cpuinfo && ls -l /dev/kvm",
        f"{lab.PYTHON} -m pytest {LOUD} -k kvm {files} {without}",
    )
    assert done.code == 0, done.output[-6000:]
    assert " passed" in done.output
    assert " skipped" not in done.output


def test_stock_kernel_boots_to_its_shell_on_one_and_two_cpus(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stock = kernel("cloud")
    guest = shlex.join([str(stock.image), str(initrd(stock))])
    done = lab.run(*(f"{lab.PYTHON} tests/lab/boot.py {guest} {cpus} kvm" for cpus in (1, 2)))
    with capsys.disabled():
        for line in re.findall(r"^guest \d: SHUT DOWN.*", done.output, re.MULTILINE):
            print(f"\n{line}")
    assert done.code == 0, done.output[-6000:]
    for cpus in (1, 2):
        said = [line for line in done.output.splitlines() if line.startswith(f"guest {cpus}: ")]
        assert f"guest {cpus}: cpus {cpus}" in said
        assert f"guest {cpus}: clock kvm-clock" in said
        assert f"guest {cpus}: entropy 256" in said  # by a doorbell, a worker and a message
        assert any("Hypervisor detected: KVM" in line for line in said)


def test_stock_kernel_boots_with_the_chips_in_this_process() -> None:
    stock = kernel("cloud")
    guest = shlex.join([str(stock.image), str(initrd(stock))])
    done = lab.run(f"{lab.PYTHON} tests/lab/boot.py {guest} 2 kvm,kernel-irqchip=split")
    assert done.code == 0, done.output[-6000:]
    said = done.output.splitlines()
    assert "guest 2: cpus 2" in said
    assert "guest 2: entropy 256" in said  # by a message of the device
    interrupts = re.search(r"^guest 2: interrupts (\d+)", done.output, re.MULTILINE)
    assert interrupts is not None
    assert int(interrupts[1]) >= 3  # the serial port's among them, which brought the commands


def test_guest_killed_finds_what_it_synced() -> None:
    kernel("cloud")
    done = lab.run(
        f"OSTLER_TEST_ACCELERATOR=kvm {lab.PYTHON} -m pytest {LOUD} tests/guest/test_disk_safety.py"
    )
    assert done.code == 0, done.output[-6000:]
    assert "2 passed" in done.output


def test_kernel_moves_the_frames_of_a_guest_by_vhost_net() -> None:
    kernel("cloud")
    native.talk()
    done = lab.run(
        f"OSTLER_TEST_ACCELERATOR=kvm {lab.PYTHON} -m pytest {LOUD} tests/guest/test_vhost.py",
        drivers=("tun", "bridge", "veth", "vhost_net"),
        limits=LONGER,
    )
    assert done.code == 0, done.output[-6000:]
    assert "3 passed" in done.output


def test_guest_drives_a_scsi_device_of_its_host() -> None:
    kernel("full")
    done = lab.run(
        f"OSTLER_TEST_ACCELERATOR=kvm {lab.PYTHON} -m pytest {LOUD}"
        " tests/unit/test_virtio_scsi_generic.py tests/guest/test_scsi_generic.py",
        drivers=("sd_mod", "sg", "scsi_debug"),
        limits=LONGER,
    )
    assert done.code == 0, done.output[-6000:]
    assert " passed" in done.output
    assert " skipped" not in done.output


def test_userland_comes_no_later_than_under_qemus_microvm(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stock = kernel("cloud")
    guest = shlex.join([str(stock.image), str(initrd(stock))])
    # On a quiet host it takes one: three fifths of QEMU's time.
    done = lab.run(f"{lab.PYTHON} tests/lab/versus.py {guest} 7")
    assert done.code == 0, done.output[-6000:]
    (found,) = re.finditer(r"^versus: .* ratio ([\d.]+), pairs \d+$", done.output, re.MULTILINE)
    with capsys.disabled():
        print(f"\n{found[0]}")
    assert float(found[1]) <= 1.0, done.output[-6000:]

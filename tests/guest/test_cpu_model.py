"""A stock kernel finds the processor that was asked for."""

from __future__ import annotations

import re

import pytest
from stock import Boot, start_shell

from guests.fetch import Kernel

pytestmark = pytest.mark.guest


def test_linux_sees_the_features_of_the_model_and_no_others(boot: Boot, cloud: Kernel) -> None:
    vm = start_shell(boot, cloud, cpu="x86-64-v2,-popcnt,+rdtscp", cpus=2)
    said = vm.serial.run("cat /proc/cpuinfo", timeout=120)
    flags = [set(line.split()) for line in re.findall(r"^flags\s*:(.*)$", said, re.MULTILINE)]
    assert len(flags) == 2
    assert flags[0] == flags[1]
    assert {"sse4_2", "ssse3", "cx16", "rdtscp", "x2apic", "hypervisor"} <= flags[0]
    assert not flags[0] & {"popcnt", "aes", "xsave", "avx", "rdrand", "smep", "movbe"}
    assert "Call Trace" not in vm.serial.run("dmesg", timeout=120)

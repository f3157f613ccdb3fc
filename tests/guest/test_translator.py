"""Whole systems under the translator: programs that check their work, and the interpreter."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from stock import Boot, log_in, long, soft_only, start_shell

import ostler
from guests.fetch import Kernel
from guests.images import ext4, initrd
from guests.rootfs import debian, debian_for_work

pytestmark = [pytest.mark.guest, soft_only]

COMPLAINTS = re.compile(r"^.*(?:WARNING|BUG|rcu: INFO|soft lockup|Oops|segfault).*$", re.MULTILINE)
# Interpreted, a Debian disk takes minutes to its login.
SLOW_S = 1800
KEY, IV = "00112233445566778899aabbccddeeff" * 2, "0f0e0d0c0b0a09080706050403020100"
DIGESTS = ("md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b512")
CIPHERS = {
    "aes-128-cbc": 32, "aes-256-ctr": 64, "aes-128-ecb": 32, "chacha20": 64, "camellia-256-cbc": 64,
}  # fmt: skip
FILES = 32
ROUNDS = 1000
MAKEFILE = r"""
.RECIPEPREFIX = >
objects := $(patsubst %.c,%.o,$(wildcard *.c))
prog: $(objects)
> gcc -o $@ $^
%.o: %.c
> gcc -O2 -c -o $@ $<
clean:
> rm -f prog *.o
"""
# What no two starts of a Linux have in common, whatever runs it.
VARIES = re.compile(
    r"tsc|clocksource|Calibrat|BogoMIPS|bogomips|random: crng|audit: type=|raid6:|systemd\[\d+\]: "
    r"|Memory: |rtc_cmos|setting system clock|Freeing|write buffers|jitter|sched_clock|hrtimer",
)


@pytest.fixture
def workshop(boot: Boot, cloud: Kernel, tmp_path: Path) -> ostler.VM:
    """A Debian of four CPUs with `debian_for_work` and sources in /dev/vdb, logged in."""
    disks = [_copy(debian_for_work(), tmp_path), ext4(tmp_path / "build.img", _sources())]
    return log_in(boot, cloud, disks, cpus=4, memory="1G")


def _copy(image: Path, folder: Path) -> Path:
    disk = folder / "debian.img"
    subprocess.run(["cp", "--sparse=always", str(image), str(disk)], check=True)
    return disk


@pytest.mark.parametrize("soft_jit", ["on", "off"])
def test_module_with_vector_instructions_is_loaded(
    boot: Boot, cloud: Kernel, soft_jit: str
) -> None:
    """It times its own ways to compute parity, by SSE and AVX, and takes one."""
    image = initrd(cloud, drivers=("raid6_pq",))
    vm = start_shell(boot, cloud, initrd=image, soft_jit=soft_jit, net="none")
    assert "raid6_pq" in vm.serial.run("cat /proc/modules")
    said = vm.serial.run("dmesg | grep raid6")
    assert re.search(r"raid6: avx2x4\s+gen\(\) +\d+ MB/s", said)
    assert re.search(r"raid6: using algorithm avx2x\d gen\(\)", said)
    assert not COMPLAINTS.findall(vm.serial.run("dmesg"))


@long
def test_stress_ng_verifies_its_work(workshop: ostler.VM) -> None:
    command = "stress-ng --cpu 2 --vm 1 --vm-bytes 128M --verify --timeout 120s 2>&1"
    said = workshop.serial.run(command, timeout=SLOW_S)
    assert "successful run completed" in said
    assert not re.search(r"fail:|error", said), said
    assert not COMPLAINTS.findall(workshop.serial.run("dmesg", timeout=120))


@long
def test_openssl_computes_what_the_host_computes(workshop: ostler.VM) -> None:
    data = b"".join(b"%d\n" % number for number in range(1, 200_001))
    workshop.serial.run("seq 200000 > data", timeout=300)
    for name in DIGESTS:
        option = name.replace("_", "-")
        said = workshop.serial.run(f"openssl dgst -{option} -r data", timeout=300)
        host = "blake2b" if name == "blake2b512" else name
        assert said.split()[0] == hashlib.new(host, data).hexdigest(), name
    for name, digits in CIPHERS.items():
        options = ["-e", f"-{name}", "-K", KEY[:digits], "-iv", IV]
        command = ["openssl", "enc", *options]
        ours = subprocess.run(command, input=data, capture_output=True, check=True)
        words = f"openssl enc {' '.join(options)} -in data 2>/dev/null | sha256sum"
        said = workshop.serial.run(words, timeout=300)
        assert said.split()[0] == hashlib.sha256(ours.stdout).hexdigest(), name
    for kind in ("RSA", "ED25519", "EC -pkeyopt ec_paramgen_curve:P-256"):
        make = f"openssl genpkey -algorithm {kind} -out key 2>/dev/null"
        workshop.serial.run(make, timeout=SLOW_S)
        sign = "openssl pkeyutl -sign -rawin -inkey key -in /etc/passwd -out signature"
        workshop.serial.run(sign, timeout=SLOW_S)
        verify = "openssl pkeyutl -verify -rawin -inkey key -in /etc/passwd -sigfile signature"
        assert "Verified Successfully" in workshop.serial.run(verify, timeout=300), kind
    speed = "openssl speed -seconds 1 sha256 aes-128-cbc rsa2048 ecdsap256 2>&1"
    said = workshop.serial.run(speed, timeout=SLOW_S)
    assert re.search(r"rsa 2048 bits +[\d.]+s", said)
    # The compiler's options, which it prints, have "error" in them.
    assert not re.search(r"fail(ed|ure)", said, re.IGNORECASE), said


def _sources() -> dict[str, bytes]:
    """Files of C that include what programs include, one function each."""
    includes = "".join(f"#include <{name}.h>\n" for name in ("math", "stdio", "stdlib", "string"))
    mix = "s = s * 6364136223846793005UL + (s >> 33 ^ i % {number})"
    function = f"for (unsigned i = 0; i < {ROUNDS}; i++) {mix}; return s;"
    files = {"Makefile": MAKEFILE}
    for number in range(1, FILES + 1):
        body = function.format(number=number)
        files[f"f{number}.c"] = f"{includes}unsigned long f{number}(unsigned long s) {{ {body} }}\n"
    numbers = range(1, FILES + 1)
    declared = "".join(f"unsigned long f{number}(unsigned long);\n" for number in numbers)
    called = "".join(f"s = f{number}(s);\n" for number in numbers)
    main = f'int main(void) {{ unsigned long s = 1;\n{called}printf("%lu\\n", s); }}\n'
    files["main.c"] = includes + declared + main
    return {name: text.encode() for name, text in files.items()}


@long
def test_parallel_build_on_four_cpus_makes_what_a_serial_one_makes(workshop: ostler.VM) -> None:
    run = workshop.serial.run
    run("mkdir build && mount /dev/vdb build && cd build")
    run("make -j8", timeout=SLOW_S)
    assert run("./prog").strip() == str(_built_value())
    run("sha256sum prog *.o > ../sums && make clean && make", timeout=SLOW_S)
    run("sha256sum --check --quiet ../sums", timeout=300)
    assert not COMPLAINTS.findall(run("dmesg", timeout=120))


def _built_value() -> int:
    """What the built program prints."""
    value, mask = 1, (1 << 64) - 1
    for number in range(1, FILES + 1):
        for i in range(ROUNDS):
            value = value * 6364136223846793005 + (value >> 33 ^ i % number) & mask
    return value


@long
def test_systemd_boots_alike_translated_and_interpreted(
    boot: Boot, cloud: Kernel, tmp_path: Path
) -> None:
    said = {}
    for soft_jit in ("on", "off"):
        disk = _copy(debian(), tmp_path)
        vm = log_in(boot, cloud, [disk], timeout=SLOW_S, soft_jit=soft_jit, net="none")
        run = vm.serial.run
        state = run("systemctl is-system-running --wait", timeout=SLOW_S, check=False).strip()
        units = "systemctl list-units --all --plain --no-legend --no-pager | sed 's/  */ /g'"
        listed = {line for line in run(units, timeout=SLOW_S).splitlines() if "session" not in line}
        lines = run("dmesg --notime 2>/dev/null || dmesg", timeout=SLOW_S).splitlines()
        kernel = {re.sub(r"\d+", "N", line) for line in lines if not VARIES.search(line)}
        programs = run("sha256sum /usr/bin/* 2>/dev/null | sha256sum", timeout=SLOW_S)
        processor = run("grep -v -i mhz /proc/cpuinfo | grep -v bogomips", timeout=SLOW_S)
        said[soft_jit] = (state, listed, kernel, programs, processor)
        vm.serial.write("poweroff\n")
        assert vm.wait(timeout=SLOW_S).exit_code == 0
    for translated, interpreted in zip(said["on"], said["off"], strict=True):
        if isinstance(translated, set) and isinstance(interpreted, set):
            assert translated ^ interpreted == set()
        assert translated == interpreted

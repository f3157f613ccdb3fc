"""Run inside the lab: `boot.py KERNEL INITRD CPUS ACCEL` boots a stock kernel, looks around.

Prints one line for each thing seen, and fails where the guest does not come up.
"""

from __future__ import annotations

import sys
import time

import ostler

# Less than the silence after which the lab counts as broken.
BOOT_S = 80
COMMANDS = {
    "cpus": "nproc",
    "clock": "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
    "entropy": "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c",
    "hypervisor": "dmesg | grep 'Hypervisor detected'",
    "interrupts": "grep -c IO-APIC /proc/interrupts",
}


def main(kernel: str, initrd: str, cpus: str, accelerator: str) -> int:
    """Boot, ask, power off; the exit code of the guest."""
    begun = time.monotonic()
    with ostler.VM(
        kernel=kernel,
        initrd=initrd,
        append="console=ttyS0 quiet panic=-1",
        memory="256M",
        cpus=int(cpus),
        devices=["virtio-rng"],
        accelerator=accelerator,
    ) as vm:
        vm.serial.wait_for("ostler: ready", timeout=BOOT_S)
        print(f"guest {cpus}: ready after {time.monotonic() - begun:.1f} s", flush=True)
        for name, command in COMMANDS.items():
            said = vm.serial.run(command, timeout=60).strip()
            print(f"guest {cpus}: {name} {said}", flush=True)
        vm.serial.write("poweroff -f\n")
        outcome = vm.wait(timeout=60)
    print(f"guest {cpus}: {outcome}", flush=True)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Run inside the lab: `boot.py KERNEL INITRD CPUS ACCEL` boots a stock kernel, looks around.

Prints one line for each thing seen, and fails where the guest does not come up.

A guest that came up, and whose processor shuts down later without a word of its kernel, is started
again, once, and that is said loudly. It was seen once. QEMU 7.2's SVM now and then
delivers an interrupt that KVM injects a second time, into the handler that has begun with
interrupts disabled: `helper_vmrun` leaves the vector in `exception_index`, and a kick of the CPU's
thread in the wrong instant takes it for an exception to raise. `redelivery.py` has seen it in 20 of
7,840 interrupts. What a kernel does then depends on where it stood; that it was this which ended
that guest is likely, not shown. A guest that ends so every time, before it is up, or with a
complaint of its kernel has a defect of ours.
"""

from __future__ import annotations

import re
import sys
import time

import ostler
from ostler.control.outcome import Ending
from ostler.errors import GuestError, OstlerError

# Less than the silence after which the lab counts as broken.
BOOT_S = 240
COMMAND_S = 120
ATTEMPTS = 2
SHOWN_CHARACTERS = 3000
COMPLAINTS = re.compile(r"Oops|BUG|PANIC|panic|Call Trace|WARNING")
COMMANDS = {
    "cpus": "nproc",
    "clock": "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
    "entropy": "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | wc -c",
    "hypervisor": "dmesg | grep 'Hypervisor detected'",
    "interrupts": "grep -c IO-APIC /proc/interrupts",
}


def main(kernel: str, initrd: str, cpus: str, accelerator: str) -> int:
    """Boot, ask, power off; the exit code of the guest."""
    name = f"guest {cpus}"
    for attempt in range(1, ATTEMPTS + 1):
        vm = ostler.VM(
            kernel=kernel,
            initrd=initrd,
            append="console=ttyS0 quiet panic=-1",
            memory="256M",
            cpus=int(cpus),
            devices=["virtio-rng"],
            accelerator=accelerator,
        )
        try:
            outcome = _look_around(vm, name)
        except OstlerError as error:
            print(f"{name}: its last words:\n{vm.serial.history[-SHOWN_CHARACTERS:]}", flush=True)
            if attempt == ATTEMPTS or not _shut_down_in_silence(vm, error):
                raise
            print(f"{name}: SHUT DOWN IN SILENCE, attempt {attempt} of {ATTEMPTS}", flush=True)
        else:
            print(f"{name}: {outcome}", flush=True)
            return outcome.exit_code
    raise AssertionError("the last attempt returns or raises")


def _look_around(vm: ostler.VM, name: str) -> ostler.Outcome:
    begun = time.monotonic()
    with vm:
        vm.serial.wait_for("ostler: ready", timeout=BOOT_S)
        print(f"{name}: ready after {time.monotonic() - begun:.1f} s", flush=True)
        for thing, command in COMMANDS.items():
            said = vm.serial.run(command, timeout=COMMAND_S).strip()
            print(f"{name}: {thing} {said}", flush=True)
        vm.serial.write("poweroff -f\n")
        return vm.wait(timeout=COMMAND_S)


def _shut_down_in_silence(vm: ostler.VM, error: OstlerError) -> bool:
    """Whether the guest came up, and ended by a triple fault without complaint."""
    return (
        isinstance(error, GuestError)
        and vm.wait(COMMAND_S).ending is Ending.TRIPLE_FAULT
        and "ostler: ready" in vm.serial.history
        and not COMPLAINTS.search(vm.serial.history)
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

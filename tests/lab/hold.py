"""Run inside the lab, before all else: keep one virtual machine of each kind open to its end.

KVM patches the scheduler's code whenever the first machine comes or the last one goes (the key of
its preemption notifiers), and its own when the first or last vCPU without a local APIC, or with one
switched off, does. A CPU that meets the INT3 of such a patch may meet it for ever: QEMU keeps the
block it translated while the INT3 stood there. Machines that stay keep the code as it is.
"""

from __future__ import annotations

import fcntl
import os
import signal

# linux/kvm.h
KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41
KVM_CREATE_IRQCHIP = 0xAE60


def main() -> None:
    """Make the machines, then leave a process behind that holds them."""
    kvm = os.open("/dev/kvm", os.O_RDWR)
    for with_interrupt_controllers in (False, True):
        vm = fcntl.ioctl(kvm, KVM_CREATE_VM, 0)
        if with_interrupt_controllers:
            fcntl.ioctl(vm, KVM_CREATE_IRQCHIP, 0)
        fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    print("lab: machines held", flush=True)
    if os.fork() == 0:
        signal.pause()


if __name__ == "__main__":
    main()

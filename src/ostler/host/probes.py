"""What only the kernel itself can answer: system calls that are tried and undone at once."""

from __future__ import annotations

import ctypes
import fcntl
import os

# Numbers of x86-64; from 424 on they are the same everywhere.
SYS_USERFAULTFD = 323
SYS_IO_URING_SETUP = 425
SYS_LANDLOCK_CREATE_RULESET = 444
LANDLOCK_CREATE_RULESET_VERSION = 1
IO_URING_PARAMS_BYTES = 120
USERFAULTFD = "/dev/userfaultfd"
KVM = "/dev/kvm"
KVM_CHECK_EXTENSION = 0xAE03
# Numbers from linux/kvm.h.
KVM_CAPABILITIES = {
    "NR_MEMSLOTS": 10,
    "MAX_VCPUS": 66,
    "TSC_DEADLINE_TIMER": 72,
    "IRQFD_RESAMPLE": 82,
    "SPLIT_IRQCHIP": 121,
    "X2APIC_API": 129,
    "COALESCED_PIO": 162,
    "MANUAL_DIRTY_LOG_PROTECT2": 168,
    "HALT_POLL": 182,
    "SREGS2": 200,
    "BINARY_STATS_FD": 203,
    "XSAVE2": 208,
    "DIRTY_LOG_RING_ACQ_REL": 223,
}


def landlock_abi() -> int | OSError:
    """The version of Landlock that the kernel speaks."""
    return _call(SYS_LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_CREATE_RULESET_VERSION)


def userfaultfd_error() -> OSError | None:
    """Why a userfaultfd that hears of the kernel's accesses cannot be had."""
    opened = _call(SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if isinstance(opened, int):
        os.close(opened)
        return None
    # Without the right to the system call, the device gives the same to whom it belongs.
    return None if os.access(USERFAULTFD, os.R_OK | os.W_OK) else opened


def io_uring_error() -> OSError | None:
    """Why a ring cannot be had."""
    params = ctypes.create_string_buffer(IO_URING_PARAMS_BYTES)
    opened = _call(SYS_IO_URING_SETUP, 1, params)
    if isinstance(opened, OSError):
        return opened
    os.close(opened)
    return None


def kvm_capabilities() -> dict[str, int]:
    """What KVM answers for each of `KVM_CAPABILITIES`; 0 is no. `OSError` where it answers none."""
    fd = os.open(KVM, os.O_RDWR | os.O_CLOEXEC)
    try:
        return {
            name: fcntl.ioctl(fd, KVM_CHECK_EXTENSION, number)
            for name, number in KVM_CAPABILITIES.items()
        }
    finally:
        os.close(fd)


def _call(number: int, *arguments: object) -> int | OSError:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        return OSError(code, os.strerror(code))
    return int(result)

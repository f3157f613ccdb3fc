"""How fast an accelerator runs a guest's kernel, measured with a guest of a few bytes.

That `/dev/kvm` is there says little: some hosts (virtual machines themselves) have one that runs
user mode at full speed and emulates every instruction of kernel mode, a thousand times slower. So a
loop in ring 0, in 64-bit mode and with page tables like a kernel's, is timed. Time is the thread's
CPU time, which other work on the host does not stretch.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ostler.engine import Interrupted, Segment, Vcpu, VirtualMachine
from ostler.host.accelerator import EMULATED_MIPS

# A measurement takes this long where the accelerator is fast enough, and never more than the limit.
ENOUGH_NS = 2_000_000
LIMIT_S = 0.5
FIRST_ROUND, LAST_ROUND = 200, 2_000_000

CODE, TABLES, STACK, DATA = 0x1000, 0x2000, 0x8000, 0x9000
RAM_BYTES = 0x10000

# A bit of everything: loads, stores, arithmetic, a call.
LOOP = bytes.fromhex(
    "488b06"  # loop: mov rax, [rsi]
    "4801c8"  # add rax, rcx
    "488906"  # mov [rsi], rax
    "4831c3"  # xor rbx, rax
    "48d1e3"  # shl rbx, 1
    "488d1403"  # lea rdx, [rbx+rax]
    "4839c2"  # cmp rdx, rax
    "7400"  # jz next
    "e806000000"  # next: call leaf
    "48ffc9"  # dec rcx
    "75de"  # jnz loop
    "f4"  # hlt
    "c3"  # leaf: ret
)
LOOP_INSTRUCTIONS = 12
# Reads of a port that nobody owns, each of which leaves the guest.
EXITS = bytes.fromhex("e480 48ffc9 75f9 f4")  # loop: in al, 0x80; dec rcx; jnz loop; hlt

CR0_PE_ET_PG, CR4_PAE, EFER_LME_LMA = 0x8000_0011, 0x20, 0x500
PRESENT_WRITE, LARGE = 0x3, 0x80
CODE_64 = Segment(0, 0xFFFF_FFFF, 0x08, 11, present=True, s=True, l=True, g=True)
FLAT_DATA = Segment(0, 0xFFFF_FFFF, 0x10, 3, present=True, s=True, db=True, g=True)


@dataclass(frozen=True, slots=True)
class Speed:
    """Million kernel-mode instructions a second, and the nanoseconds that an exit takes."""

    mips: float
    exit_ns: float

    @property
    def emulated(self) -> bool:
        """Whether no processor runs at that speed."""
        return self.mips < EMULATED_MIPS


def measure(accelerator: str) -> Speed:
    """Time `accelerator`, in milliseconds; `HostError` where it cannot be used."""
    loop_ns = _per_round(accelerator, LOOP)
    return Speed(LOOP_INSTRUCTIONS * 1000 / loop_ns, _per_round(accelerator, EXITS))


def _per_round(accelerator: str, code: bytes) -> float:
    """Nanoseconds of CPU time that one round of the loop `code` takes."""
    vm = VirtualMachine(accelerator)
    try:
        vcpu = _kernel(vm, code)
        rounds = FIRST_ROUND
        _run(vcpu, rounds)  # what the first touch of memory and of code costs is not the speed
        while True:
            spent_ns, done = _run(vcpu, rounds)
            if spent_ns >= ENOUGH_NS or done < rounds or rounds >= LAST_ROUND:
                return spent_ns / max(done, 1)
            rounds *= 10
    finally:
        vm.close()


def _kernel(vm: VirtualMachine, code: bytes) -> Vcpu:
    """A vCPU in ring 0 with 2 MiB of memory mapped to themselves, of which a part is there."""
    vm.bus.open_bus = True
    vm.memory.add_slot(0, gpa=0, size=RAM_BYTES)
    vm.memory.write(CODE, code)
    entries = (TABLES + 0x1000 | PRESENT_WRITE, TABLES + 0x2000 | PRESENT_WRITE)
    for level, entry in enumerate((*entries, LARGE | PRESENT_WRITE)):
        vm.memory.write(TABLES + level * 0x1000, struct.pack("<Q", entry))
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.sregs
    sregs.cs = CODE_64
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = FLAT_DATA
    sregs.cr0, sregs.cr3, sregs.cr4 = CR0_PE_ET_PG, TABLES, CR4_PAE
    sregs.efer = EFER_LME_LMA
    vcpu.sregs = sregs
    return vcpu


def _run(vcpu: Vcpu, rounds: int) -> tuple[int, int]:
    """Run that many rounds, or as many as the limit allows: CPU time in ns, and rounds done."""
    vcpu.set_regs(rip=CODE, rcx=rounds, rsi=DATA, rsp=STACK, rflags=2)
    with _Deadline(vcpu.kick):
        started_ns = time.thread_time_ns()
        exit = vcpu.run()
        spent_ns = time.thread_time_ns() - started_ns
    done = rounds - vcpu.regs.rcx if isinstance(exit, Interrupted) else rounds
    return spent_ns, done


class _Deadline:
    """Calls `act` after `LIMIT_S`, unless the block has ended by then."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._timer = threading.Timer(LIMIT_S, act)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

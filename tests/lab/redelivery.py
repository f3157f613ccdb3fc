"""Run inside the lab, by hand: `redelivery.py SECONDS` counts interrupts that are delivered twice.

A guest's handler counts up as it begins and down before it ends, with interrupts disabled: it says
how deep it is where it is entered again meanwhile, which no processor does. `boot.py` says why the
emulator does; `PUSHF; POPF` in the handler leaves the emulator's translated code in every round,
which gives it the chance.
"""

from __future__ import annotations

import queue
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
import engine_guest
from engine_guest import ENTRY, OUT, Mailbox

from ostler.engine import DescriptorTable, Exit, LapicState, Vcpu

VECTOR, HANDLER, DONE = 0x51, 0x2000, 0x77
ROUNDS = 20_000
WAIT = bytes.fromhex("b001") + OUT + bytes.fromhex("fbf4ebfc")  # say 1; sti; hlt; jmp sti
COUNT_UP = bytes.fromhex("fe060050 a00050 3c01 7402") + OUT  # inc [0x5000]; say it unless 1
SPEND = b"\x66\xb9" + ROUNDS.to_bytes(4, "little") + bytes.fromhex("9c9d 6649 75fa")
END = bytes.fromhex("fe0e0050 b077") + OUT  # dec [0x5000]; say 0x77
SAVE, RETURN = bytes.fromhex("50 6651"), bytes.fromhex("6659 58 cf")  # ax, ecx; iret
SPURIOUS, IN_SERVICE = slice(0xF0, 0xF4), slice(0x100, 0x180)


def main(seconds: str) -> None:
    """Send one interrupt after the other, and print how many came twice."""
    engine_guest.accelerator = "kvm"
    vm = engine_guest.machine()
    vm.create_irqchip()
    vm.memory.add_slot(0, gpa=0, size=engine_guest.RAM_BYTES)
    vm.memory.write(ENTRY, WAIT)
    vm.memory.write(HANDLER, SAVE + COUNT_UP + SPEND + END + RETURN)
    vm.memory.write(4 * VECTOR, HANDLER.to_bytes(4, "little"))
    vm.bus.add("pio", 0x10, 1, mailbox := Mailbox())
    vcpu = vm.create_vcpu(0)
    engine_guest.enter_real_mode(vcpu)
    vcpu.set_sregs(idt=DescriptorTable(limit=0x3FF))
    vcpu.set_regs(rsp=0x8000)
    _set_lapic(vcpu, SPURIOUS, (0x1FF).to_bytes(4, "little"))
    route = vm.msi_route()
    route.update(0xFEE0_0000, VECTOR)
    route.masked = False

    def ignore(_vcpu: int, _exit: Exit) -> None:
        """Nothing is expected to leave the guest."""

    threads = vm.start([vcpu], ignore)
    assert mailbox.get() == 1
    sent = twice = 0
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        route.signal()
        sent += 1
        while (said := mailbox.get()) != DONE:
            twice += 1
            print(f"redelivery: depth {said} at interrupt {sent}", flush=True)
            assert mailbox.get() == DONE
        threads.pause()
        _set_lapic(vcpu, IN_SERVICE, bytes(0x80))
        threads.resume()
    print(f"redelivery: {twice} of {sent} interrupts came twice")
    threads.stop()


def _set_lapic(vcpu: Vcpu, where: slice, content: bytes) -> None:
    regs = bytearray(vcpu.lapic.regs)
    regs[where] = content
    vcpu.lapic = LapicState(bytes(regs))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except queue.Empty:
        sys.exit("redelivery: the guest fell silent")

//! KVM's hypercalls.

use crate::cpu::Cpu;
use crate::cpu::regs::RAX;
use crate::cpu::stop::Exec;
use crate::decode::op::Op;

const VAPIC_POLL_IRQ: u64 = 1;
/// -KVM_ENOSYS.
const NO_SUCH_CALL: i64 = -1000;
/// -KVM_EPERM.
const NOT_PERMITTED: i64 = -1;

/// VMCALL and VMMCALL. Of KVM's calls there is the one that does nothing: CPUID offers none of the
/// features behind the others.
pub fn hypercall(cpu: &mut Cpu, _: &Op) -> Exec {
    let call = cpu.regs.get(RAX);
    let answer = match call {
        _ if cpu.cpl != 0 => NOT_PERMITTED,
        VAPIC_POLL_IRQ => 0,
        _ => NO_SUCH_CALL,
    };
    if cpu.bitness == 64 {
        cpu.regs.set(RAX, answer as u64);
    } else {
        cpu.regs.write(0, answer as u32);
    }
    Ok(())
}

//! What cannot be compared with a `/dev/kvm` that emulates instead of running the guest on the CPU.
//!
//! Where a host has KVM without hardware virtualization, its user mode runs on the CPU; but an instruction that
//! raises #UD or #GP goes through KVM's emulator, which knows few of them, and so does all code of less than 64 bits.

use ostler_engine::Accelerator;

use crate::cpu::{Cpu, Fallible};
use crate::initial::FILLER;
use crate::layout::{CODE, DATA, memory_offset};
use crate::sequence::Sequence;
use crate::soft::SoftCpu;
use crate::state::{CpuState, Mode, Outcome, RBX, Stop};

const UD: u8 = 6;
const GP: u8 = 13;
/// PHADDW XMM0, [RBX]: one of those that the emulator does not know.
const ALIGNED_LOAD: [u8; 5] = [0x66, 0x0f, 0x38, 0x01, 0x03];

/// Whether `accelerator` gives #UD where every processor gives #GP: for a load that is not aligned.
pub fn is_emulating(accelerator: &dyn Accelerator) -> Fallible<bool> {
    let mut state = CpuState { rip: CODE.base, ..CpuState::default() };
    state.memory[CODE.range()].fill(FILLER);
    state.write_memory(CODE.base, &ALIGNED_LOAD);
    state.gprs[RBX] = DATA.base + 1;
    let outcome = SoftCpu::new(accelerator)?.run(Mode::Long, &state)?;
    Ok(matches!(outcome.stop, Stop::Exception { vector: UD, .. }))
}

/// Whether the sequence, of which the host made `expected`, never reaches the emulator but for its HLT.
pub fn is_native(sequence: &Sequence, expected: &Outcome) -> bool {
    let at_filler = memory_offset(expected.state.rip).is_some_and(|at| expected.state.memory[at] == FILLER);
    sequence.mode == Mode::Long
        && match expected.stop {
            Stop::Exception { vector: GP, .. } => at_filler,
            Stop::Exception { vector, .. } => vector != UD,
            Stop::Timeout | Stop::Broken(_) => false,
        }
}

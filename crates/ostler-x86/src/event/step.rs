//! Instructions that run one at a time: under the trap flag, with breakpoints, in the shadow of STI.

use ostler_engine::Exit;

use crate::cpu::flags::bit;
use crate::cpu::stop::Stop;
use crate::cpu::{Cpu, attention};

impl Cpu {
    /// Whether only one instruction may run before the next look; to be asked once before it runs.
    #[inline]
    pub fn begins_step(&mut self) -> bool {
        self.attention & (attention::SHADOW | attention::STEP) != 0 && self.begin_step()
    }

    #[cold]
    fn begin_step(&mut self) -> bool {
        self.events.shadowed |= self.attention & attention::SHADOW != 0;
        self.attention &= !attention::SHADOW;
        self.debug.trap_after = self.flags.has(bit::TF);
        // RF lasts for one instruction; one that faults pushes it again.
        self.flags.set(bit::RF, false);
        true
    }

    /// After a single instruction, which stopped by `stop`.
    pub fn stepped(&mut self, stop: Stop) -> Option<Exit> {
        self.events.shadowed = false;
        if stop == Stop::Fault || self.attention & attention::SHADOW != 0 {
            // A fault's handler, or MOV SS, swallows the trap.
            return None;
        }
        self.after_instruction()
    }
}

//! Exceptions and interrupts on their way in.

use ostler_engine::Exit;

use crate::cpu::Cpu;
use crate::cpu::stop::Stop;

/// What was injected and waits to be delivered.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    pub interrupt: Option<u8>,
    pub nmi_pending: bool,
    pub nmi_masked: bool,
}

impl Cpu {
    /// Delivers what is due between two instructions. `raised` are the signals just taken.
    pub fn take_events(&mut self, raised: u32) -> Option<Exit> {
        let _ = raised;
        None
    }

    /// Delivers `self.fault`; RIP is the faulting instruction's.
    pub fn deliver_fault(&mut self) -> Option<Exit> {
        Some(Exit::Shutdown)
    }

    /// Whether only one instruction may run before the next look.
    pub fn shadow_steps(&self) -> bool {
        false
    }

    /// After a single instruction.
    pub fn stepped(&mut self, stop: Stop) -> Option<Exit> {
        let _ = stop;
        None
    }
}

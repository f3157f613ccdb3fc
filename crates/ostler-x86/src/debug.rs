//! Breakpoints and single-stepping.

use crate::cpu::Cpu;
use crate::mmu::walk::Access;

pub const DR6_RESET: u64 = 0xffff_0ff0;
pub const DR7_RESET: u64 = 0x400;

/// What a debugger outside the guest asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugState {}

impl Cpu {
    /// Notes a data breakpoint that an access matches.
    pub fn data_breakpoint(&mut self, linear: u64, len: usize, access: Access) {
        let _ = (linear, len, access);
    }

    /// Whether a data breakpoint lies in the page, so that its accesses have to be looked at.
    pub fn has_data_breakpoint(&self, page: u64) -> bool {
        let _ = page;
        false
    }
}

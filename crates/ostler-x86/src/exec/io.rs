//! Ports and the interrupt controllers' addresses.

use crate::cpu::Cpu;
use crate::mmu::mmio::Access;

impl Cpu {
    /// Lets the interrupt controllers answer an access; false when it is not theirs.
    pub fn irqchip_access(&mut self, access: &mut Access) -> bool {
        let _ = access;
        false
    }
}

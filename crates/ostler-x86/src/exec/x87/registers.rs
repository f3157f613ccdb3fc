//! The control, status and tag words, and the register stack.

use crate::cpu::vector::X87Image;

/// Fields of the status word.
pub mod fsw {
    /// The exception flags: IE, DE, ZE, OE, UE, PE.
    pub const EXCEPTIONS: u16 = 0x3f;
    /// An unmasked exception is pending.
    pub const SUMMARY: u16 = 1 << 7;
    pub const TOP: u16 = 7 << 11;
    pub const TOP_SHIFT: u32 = 11;
    /// Busy: the same as [`SUMMARY`] since the 387.
    pub const BUSY: u16 = 1 << 15;
    /// What FNCLEX leaves.
    pub const NOT_CLEARED: u16 = 0x7f00;
}

/// Bits of the control word that can be written.
const CONTROL_MASK: u16 = 0x1f3f;
/// Bit 6 of the control word, which has no function, is always set.
const CONTROL_ONES: u16 = 0x0040;

impl X87Image {
    /// The physical register that ST0 is.
    pub fn top(&self) -> usize {
        usize::from((self.fsw & fsw::TOP) >> fsw::TOP_SHIFT)
    }

    /// Makes another physical register ST0. The physical registers keep their contents.
    pub fn set_top(&mut self, top: usize) {
        let up = (top % 8 + 8 - self.top()) % 8;
        self.st.rotate_left(up);
        self.fsw = self.fsw & !fsw::TOP | ((top % 8) as u16) << fsw::TOP_SHIFT;
    }

    pub fn set_control(&mut self, value: u16) {
        self.fcw = value & CONTROL_MASK | CONTROL_ONES;
    }

    /// The 10 bytes of physical register `number`, in 16.
    pub fn physical(&mut self, number: usize) -> &mut [u8; 16] {
        let index = (number + 8 - self.top()) % 8;
        &mut self.st[index]
    }

    /// What FNINIT does: everything but the contents of the registers.
    pub fn initialize(&mut self) {
        self.set_top(0);
        *self = Self { st: self.st, ..Self::default() };
    }

    /// Whether this is the initial state that XRSTOR would give.
    pub fn is_initial(&self) -> bool {
        let initial = Self::default();
        (self.fcw, self.fsw, self.ftw, self.fop, self.fip, self.fdp)
            == (initial.fcw, initial.fsw, initial.ftw, initial.fop, initial.fip, initial.fdp)
            && self.st == initial.st
    }
}

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

    /// The tag word with two bits per physical register: valid, zero, special or empty.
    pub fn full_tags(&self) -> u16 {
        let top = self.top();
        (0..8).fold(0, |tags, number| {
            let register = &self.st[(number + 8 - top) % 8];
            let tag = if self.ftw >> number & 1 == 0 { tag::EMPTY } else { tag::of(register) };
            tags | tag << (2 * number)
        })
    }

    /// Takes a tag word, of which only "empty" matters: the rest follows from the registers.
    pub fn set_tags(&mut self, tags: u16) {
        let used = (0..8).filter(|number| tags >> (2 * number) & 3 != tag::EMPTY);
        self.ftw = used.fold(0, |ftw, number| ftw | 1 << number);
    }
}

mod tag {
    const VALID: u16 = 0;
    const ZERO: u16 = 1;
    const SPECIAL: u16 = 2;
    pub const EMPTY: u16 = 3;

    /// The tag of a register that is not empty.
    pub fn of(register: &[u8; 16]) -> u16 {
        let mut mantissa = [0; 8];
        mantissa.copy_from_slice(&register[..8]);
        let mantissa = u64::from_le_bytes(mantissa);
        let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
        match (exponent, mantissa) {
            (0, 0) => ZERO,
            (1..0x7fff, _) if mantissa >> 63 != 0 => VALID,
            _ => SPECIAL,
        }
    }
}

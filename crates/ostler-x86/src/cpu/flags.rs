//! RFLAGS, with the six arithmetic flags computed only when somebody reads them.

/// Bits of RFLAGS (Intel SDM vol. 1, 3.4.3).
pub mod bit {
    pub const CF: u64 = 1 << 0;
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The flags that arithmetic sets.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every flag that exists.
    pub const ALL: u64 = ARITH | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

use crate::cpu::width::Width;

/// Bit of `carries` that holds the auxiliary carry.
const AF_CARRY: u64 = 1 << 3;

/// RFLAGS in three words of evidence and one of plain bits.
///
/// An instruction stores its result and the vector of carries out of each bit position; CF is then
/// the top carry, AF carry 3, and OF says whether the two top carries differ.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    /// ZF: this is zero.
    zero: u64,
    /// SF: bit 63. PF: the low byte has an even number of ones.
    sign_parity: u64,
    /// CF: bit 63. OF: bit 63 differs from bit 62. AF: bit 3.
    carries: u64,
    /// All flags but the arithmetic ones, as RFLAGS has them.
    pub system: u64,
}

impl Default for Flags {
    fn default() -> Self {
        Self { zero: 1, sign_parity: 1, carries: 0, system: bit::FIXED }
    }
}

impl Flags {
    #[inline(always)]
    fn set_result<W: Width>(&mut self, result: W, carries: u64) {
        self.zero = result.sign_extend();
        self.sign_parity = self.zero;
        self.carries = carries << (64 - W::BITS) | carries & AF_CARRY;
    }

    /// After `result = a + b` (+ carry).
    #[inline(always)]
    pub fn set_add<W: Width>(&mut self, a: W, b: W, result: W) {
        let (a, b, sum) = (a.zero_extend(), b.zero_extend(), result.zero_extend());
        self.set_result(result, (a & b) | ((a | b) & !sum));
    }

    /// After `result = a - b` (- borrow).
    #[inline(always)]
    pub fn set_sub<W: Width>(&mut self, a: W, b: W, result: W) {
        let (a, b, difference) = (a.zero_extend(), b.zero_extend(), result.zero_extend());
        self.set_result(result, (!a & b) | ((!a | b) & difference));
    }

    /// After AND, OR, XOR, TEST: CF, OF and (undefined, here) AF are clear.
    #[inline(always)]
    pub fn set_logic<W: Width>(&mut self, result: W) {
        self.set_result(result, 0);
    }

    /// ZF, SF and PF after `result`; the carries stay.
    #[inline(always)]
    pub fn set_zsp<W: Width>(&mut self, result: W) {
        self.zero = result.sign_extend();
        self.sign_parity = self.zero;
    }

    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.carries >> 63 != 0
    }

    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.carries ^ self.carries << 1) >> 63 != 0
    }

    #[inline(always)]
    pub fn af(&self) -> bool {
        self.carries & AF_CARRY != 0
    }

    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.zero == 0
    }

    #[inline(always)]
    pub fn sf(&self) -> bool {
        self.sign_parity >> 63 != 0
    }

    #[inline(always)]
    pub fn pf(&self) -> bool {
        (self.sign_parity as u8).count_ones().is_multiple_of(2)
    }

    /// CF and OF; AF stays.
    #[inline(always)]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.carries = u64::from(cf) << 63 | u64::from(cf != of) << 62 | self.carries & AF_CARRY;
    }

    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.set_cf_of(cf, of);
    }

    #[inline(always)]
    pub fn set_of(&mut self, of: bool) {
        let cf = self.cf();
        self.set_cf_of(cf, of);
    }

    pub fn set_af(&mut self, af: bool) {
        self.carries = self.carries & !AF_CARRY | u64::from(af) << 3;
    }

    /// ZF; the other flags stay.
    pub fn set_zf_alone(&mut self, zf: bool) {
        self.zero = u64::from(!zf);
    }

    /// ZF; SF and PF stay.
    pub fn set_zf(&mut self, zf: bool) {
        self.zero = u64::from(!zf);
    }

    /// The arithmetic flags as RFLAGS has them.
    pub fn arithmetic(&self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// Takes the arithmetic flags from a RFLAGS value.
    pub fn set_arithmetic(&mut self, value: u64) {
        self.zero = u64::from(value & bit::ZF == 0);
        self.sign_parity = u64::from(value & bit::SF != 0) << 63 | u64::from(value & bit::PF == 0);
        self.carries = if value & bit::AF != 0 { AF_CARRY } else { 0 };
        self.set_cf_of(value & bit::CF != 0, value & bit::OF != 0);
    }

    pub fn to_u64(&self) -> u64 {
        self.arithmetic() | self.system
    }

    /// Takes a whole RFLAGS value; bits that do not exist are dropped.
    pub fn set_u64(&mut self, value: u64) {
        self.set_arithmetic(value);
        self.system = value & bit::ALL & !bit::ARITH | bit::FIXED;
    }

    #[inline(always)]
    pub fn has(&self, system_flag: u64) -> bool {
        self.system & system_flag != 0
    }

    pub fn set(&mut self, system_flag: u64, on: bool) {
        if on { self.system |= system_flag } else { self.system &= !system_flag }
    }

    pub fn iopl(&self) -> u8 {
        (self.system >> 12 & 3) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(a: u8, b: u8, subtract: bool) -> (u8, u64) {
        let (wide, signed, nibble) = if subtract {
            (
                i32::from(a) - i32::from(b),
                i32::from(a as i8) - i32::from(b as i8),
                i32::from(a & 15) - i32::from(b & 15),
            )
        } else {
            (
                i32::from(a) + i32::from(b),
                i32::from(a as i8) + i32::from(b as i8),
                i32::from(a & 15) + i32::from(b & 15),
            )
        };
        let result = wide as u8;
        let mut flags = 0;
        for (set, flag) in [
            (!(0..=255).contains(&wide), bit::CF),
            (!(-128..=127).contains(&signed), bit::OF),
            (!(0..=15).contains(&nibble), bit::AF),
            (result == 0, bit::ZF),
            (result >= 0x80, bit::SF),
            (result.count_ones().is_multiple_of(2), bit::PF),
        ] {
            flags |= if set { flag } else { 0 };
        }
        (result, flags)
    }

    #[test]
    fn add_and_sub_of_all_byte_pairs_match_the_definition() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                let mut flags = Flags::default();
                let (sum, expected) = reference(a, b, false);
                flags.set_add(a, b, sum);
                assert_eq!(flags.arithmetic(), expected, "{a} + {b}");
                let (difference, expected) = reference(a, b, true);
                flags.set_sub(a, b, difference);
                assert_eq!(flags.arithmetic(), expected, "{a} - {b}");
            }
        }
    }

    #[test]
    fn any_combination_of_flags_survives_a_round_trip() {
        for pattern in 0..64u64 {
            let value = bit::FIXED
                | (pattern & 1)
                | (pattern >> 1 & 1) << 2
                | (pattern >> 2 & 1) << 4
                | (pattern >> 3 & 1) << 6
                | (pattern >> 4 & 1) << 7
                | (pattern >> 5 & 1) << 11;
            let mut flags = Flags::default();
            flags.set_u64(value);
            assert_eq!(flags.to_u64(), value);
        }
    }
}

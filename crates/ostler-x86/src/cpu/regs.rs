//! The general-purpose registers as one array of bytes-addressable words.

use crate::cpu::width::Width;

/// Index of each register in the file; iced's order and the encoding's.
pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;
/// Always zero: stands for an absent base or index.
pub const ZERO: usize = 16;
/// RIP at the start of the running block: the base of RIP-relative operands.
pub const BLOCK_RIP: usize = 17;
const WORDS: usize = 18;

/// A register operand: the byte offset of its low byte in the file. AH is byte 1, AX is byte 0.
pub type RegOffset = u8;

/// RAX..R15, then [`ZERO`] and [`BLOCK_RIP`].
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct RegFile {
    words: [u64; WORDS],
}

impl Default for RegFile {
    fn default() -> Self {
        Self { words: [0; WORDS] }
    }
}

impl RegFile {
    /// The whole register `index` (an index, not an offset).
    #[inline(always)]
    pub fn get(&self, index: usize) -> u64 {
        debug_assert!(index < WORDS);
        // SAFETY: indices come from this crate's constants and from the decoder, all below WORDS.
        unsafe { *self.words.get_unchecked(index) }
    }

    #[inline(always)]
    pub fn set(&mut self, index: usize, value: u64) {
        debug_assert!(index < WORDS && index != ZERO);
        // SAFETY: as in `get`.
        unsafe { *self.words.get_unchecked_mut(index) = value };
    }

    /// The file as translated code sees it.
    pub fn as_mut_ptr(&mut self) -> *mut u64 {
        self.words.as_mut_ptr()
    }

    /// The register operand at `offset`, `W` wide.
    #[inline(always)]
    pub fn read<W: Width>(&self, offset: RegOffset) -> W {
        debug_assert!(usize::from(offset) + W::BYTES <= WORDS * 8);
        // SAFETY: offsets are made by the decoder: 8 * register, plus 1 for AH..BH.
        unsafe { self.words.as_ptr().cast::<u8>().add(usize::from(offset)).cast::<W>().read_unaligned() }
    }

    /// Writes a register operand; a 32-bit write clears the upper half (SDM vol. 1, 3.4.1.1).
    #[inline(always)]
    pub fn write<W: Width>(&mut self, offset: RegOffset, value: W) {
        debug_assert!(usize::from(offset) + W::BYTES <= WORDS * 8);
        // SAFETY: as in `read`; a 32-bit operand never is AH..BH, so its 8 bytes are in the file.
        unsafe {
            let pointer = self.words.as_mut_ptr().cast::<u8>().add(usize::from(offset));
            if W::BYTES == 4 {
                pointer.cast::<u64>().write(value.zero_extend());
            } else {
                pointer.cast::<W>().write_unaligned(value);
            }
        }
    }
}

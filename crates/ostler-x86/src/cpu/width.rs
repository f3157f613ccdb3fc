//! Operand widths, so that one semantic function serves 8, 16, 32 and 64 bits.

use std::fmt::Debug;
use std::ops::{BitAnd, BitOr, BitXor, Not};

/// An unsigned integer a general-purpose register or a memory operand can hold.
pub trait Width:
    Copy
    + Debug
    + Default
    + Eq
    + Ord
    + Send
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Not<Output = Self>
    + 'static
{
    const BITS: u32;
    const BYTES: usize;
    /// The low bits of `value`.
    fn truncate(value: u64) -> Self;
    fn zero_extend(self) -> u64;
    fn sign_extend(self) -> u64;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    /// Compares and exchanges at `pointer` as LOCK CMPXCHG does, aligned or not; `Err` has what was there.
    ///
    /// # Safety
    /// `pointer` is valid for reads and writes of `BYTES` bytes that other threads may also access.
    unsafe fn compare_exchange(pointer: *mut u8, current: Self, new: Self) -> Result<Self, Self>;
}

macro_rules! width {
    ($unsigned:ty, $signed:ty, $mnemonic:literal, $kind:ident, $accumulator:tt) => {
        impl Width for $unsigned {
            const BITS: u32 = <$unsigned>::BITS;
            const BYTES: usize = size_of::<$unsigned>();
            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $unsigned
            }
            #[inline(always)]
            fn zero_extend(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sign_extend(self) -> u64 {
                self as $signed as i64 as u64
            }
            #[inline(always)]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline]
            unsafe fn compare_exchange(pointer: *mut u8, current: Self, new: Self) -> Result<Self, Self> {
                let found: $unsigned;
                // SAFETY: the caller vouches for `pointer`. Assembly, because `Atomic*` must be
                // aligned and a guest's operand need not be.
                unsafe {
                    std::arch::asm!(
                        $mnemonic,
                        pointer = in(reg) pointer,
                        new = in($kind) new,
                        inout($accumulator) current => found,
                        options(nostack),
                    );
                }
                if found == current { Ok(found) } else { Err(found) }
            }
        }
    };
}

width!(u8, i8, "lock cmpxchg byte ptr [{pointer}], {new}", reg_byte, "al");
width!(u16, i16, "lock cmpxchg word ptr [{pointer}], {new:x}", reg, "ax");
width!(u32, i32, "lock cmpxchg dword ptr [{pointer}], {new:e}", reg, "eax");
width!(u64, i64, "lock cmpxchg qword ptr [{pointer}], {new}", reg, "rax");

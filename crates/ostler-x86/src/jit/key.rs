//! What translated code takes for granted about the CPU's state.

use crate::cpu::control::{cr0, cr4};
use crate::cpu::{Cpu, Mode};
use crate::exec::availability::xcr0;
use crate::mmu::Privilege;

/// A combination of states that code was translated for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Key(u8);

const SSE: u8 = 1 << 2;
const AVX: u8 = 1 << 3;
/// Every floating-point exception of SSE is masked.
const MASKED: u8 = 1 << 4;
/// Code can be translated at all.
const VALID: u8 = 1 << 5;

const RING_0: u8 = 1 << 6;
/// CR4.SMAP.
const SMAP: u8 = 1 << 7;
/// The [`Privilege`].
const PRIVILEGE: u8 = 3;

/// The exception masks of MXCSR.
const MXCSR_MASKS: u32 = 0x1f80;

impl Key {
    /// The key of the present state; `None` where there is no translated code: outside 64-bit mode, and
    /// where alignment is checked.
    #[inline]
    pub fn of(cpu: &Cpu) -> Option<Self> {
        if cpu.mode != Mode::Long || cpu.mmu.privilege == Privilege::UserAligned {
            return None;
        }
        let task_switched = cpu.cr0 & (cr0::EM | cr0::TS) != 0;
        let sse = !task_switched && cpu.cr4 & cr4::OSFXSR != 0;
        let avx =
            cpu.cr0 & cr0::TS == 0 && cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & xcr0::AVX_STATE == xcr0::AVX_STATE;
        let masked = cpu.vector.mxcsr & MXCSR_MASKS == MXCSR_MASKS;
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        let ring = bit(cpu.cpl == 0, RING_0) | bit(cpu.cr4 & cr4::SMAP != 0, SMAP);
        Some(Self(VALID | ring | cpu.mmu.privilege as u8 | bit(sse, SSE) | bit(avx, AVX) | bit(masked, MASKED)))
    }

    /// The bank of the TLB and of the table of jumps.
    pub fn bank(self) -> usize {
        usize::from(self.0 & PRIVILEGE)
    }

    /// The byte that tells it from other keys.
    pub(super) fn byte(self) -> u8 {
        self.0
    }

    /// What a key of ring 0 becomes by STAC or CLAC.
    pub(super) fn with_user_pages(self, allowed: bool) -> Self {
        let smap = self.0 & SMAP != 0 && !allowed;
        let privilege = if smap { Privilege::SupervisorSmap } else { Privilege::Supervisor };
        Self(self.0 & !PRIVILEGE | privilege as u8)
    }

    pub fn ring_0(self) -> bool {
        self.0 & RING_0 != 0
    }

    pub fn sse(self) -> bool {
        self.0 & SSE != 0
    }

    pub fn avx(self) -> bool {
        self.0 & AVX != 0
    }

    pub fn exceptions_masked(self) -> bool {
        self.0 & MASKED != 0
    }
}

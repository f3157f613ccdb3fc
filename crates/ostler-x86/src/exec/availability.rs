//! Whether x87, SSE and AVX instructions may be used right now (SDM vol. 3, tables 2-1 and 14-1 to 14-3).

use crate::cpu::Cpu;
use crate::cpu::control::{cr0, cr4};
use crate::cpu::stop::{Exec, vector};

/// Bits of XCR0.
pub mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
    /// What AVX instructions need.
    pub const AVX_STATE: u64 = SSE | AVX;
}

impl Cpu {
    /// For x87 instructions: #NM when CR0.EM or CR0.TS is set.
    #[inline]
    pub fn check_fpu(&mut self) -> Exec {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.raise(vector::NM));
        }
        Ok(())
    }

    /// For WAIT: #NM when CR0.MP and CR0.TS are both set.
    pub fn check_wait(&mut self) -> Exec {
        if self.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
            return Err(self.raise(vector::NM));
        }
        Ok(())
    }

    /// For MMX instructions: #UD when CR0.EM is set, #NM when CR0.TS is.
    #[inline]
    pub fn check_mmx(&mut self) -> Exec {
        if self.cr0 & cr0::EM != 0 {
            return Err(self.undefined());
        }
        self.check_task_switched()
    }

    /// For SSE instructions that are encoded without VEX.
    #[inline]
    pub fn check_sse(&mut self) -> Exec {
        if self.cr0 & cr0::EM != 0 || self.cr4 & cr4::OSFXSR == 0 {
            return Err(self.undefined());
        }
        self.check_task_switched()
    }

    /// For instructions encoded with VEX: protected mode, and XCR0 enables SSE and AVX.
    #[inline]
    pub fn check_avx(&mut self) -> Exec {
        let enabled = self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & xcr0::AVX_STATE == xcr0::AVX_STATE;
        if !enabled || self.is_real_or_v86() {
            return Err(self.undefined());
        }
        self.check_task_switched()
    }

    /// For XSAVE and its relatives.
    pub fn check_xsave(&mut self) -> Exec {
        if self.cr4 & cr4::OSXSAVE == 0 {
            return Err(self.undefined());
        }
        self.check_task_switched()
    }

    #[inline]
    fn check_task_switched(&mut self) -> Exec {
        if self.cr0 & cr0::TS != 0 {
            return Err(self.raise(vector::NM));
        }
        Ok(())
    }
}

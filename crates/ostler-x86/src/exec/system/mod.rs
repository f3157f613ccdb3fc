//! Instructions of operating systems.
//!
//! * [`control`], [`debug`]: the control and debug registers; [`tables`]: descriptor tables;
//! * [`protection`]: LAR, LSL, VERR, VERW, ARPL; [`segments`]: segment registers and their bases;
//! * [`fast_call`]: SYSCALL and SYSENTER; [`interrupt`]: INT, HLT, the interrupt flag, PUSHF and POPF;
//! * [`identity`]: CPUID, time stamps, random numbers, MSRs, XCR0; [`tlb`]: invalidations; [`hypercall`];
//! * [`monitor`]: MONITOR and MWAIT.

pub mod control;
pub mod debug;
pub mod fast_call;
pub mod hypercall;
pub mod identity;
pub mod interrupt;
pub mod monitor;
pub mod protection;
pub mod segments;
pub mod tables;
pub mod tlb;

use crate::cpu::Cpu;
use crate::cpu::control::cr4;
use crate::cpu::stop::Exec;

impl Cpu {
    /// #GP(0) outside privilege level 0.
    #[inline]
    pub fn require_cpl0(&mut self) -> Exec {
        if self.cpl != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// #UD in real and virtual-8086 mode.
    pub fn require_protected(&mut self) -> Exec {
        if self.is_real_or_v86() { Err(self.undefined()) } else { Ok(()) }
    }

    /// #GP(0) for user mode when CR4.UMIP is set.
    pub fn require_no_umip(&mut self) -> Exec {
        if self.cpl != 0 && self.cr4 & cr4::UMIP != 0 { Err(self.gp(0)) } else { Ok(()) }
    }
}

//! Unmasked exceptions: raised by one instruction, reported by the next that waits.

use crate::cpu::Cpu;
use crate::cpu::control::cr0;
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::vector::X87Image;
use crate::exec::x87::registers::fsw;

/// Where a PC/AT wires the FERR# pin.
const FERR_GSI: u32 = 13;

impl Cpu {
    /// Before an x87 instruction that waits: #NM, or the pending exception.
    #[inline]
    pub fn begin_x87(&mut self) -> Exec {
        self.check_fpu()?;
        self.report_pending_x87()
    }

    /// Reports a pending unmasked exception: #MF, or with CR0.NE clear as a PC/AT does.
    #[inline]
    pub fn report_pending_x87(&mut self) -> Exec {
        let x87 = &self.vector.x87;
        // Not by the summary bit: that the host runs nothing while this is true must not depend on it.
        if x87.fsw & !x87.fcw & fsw::EXCEPTIONS == 0 {
            return Ok(());
        }
        self.pending_x87()
    }

    /// With CR0.NE clear the CPU asserts FERR# and stands still before the instruction until an
    /// interrupt: IRQ 13, whose handler clears the exception. IGNNE# is never asserted.
    #[cold]
    fn pending_x87(&mut self) -> Exec {
        if self.cr0 & cr0::NE != 0 {
            return Err(self.raise(vector::MF));
        }
        self.set_ferr(true);
        Err(Stop::Repeat)
    }

    fn set_ferr(&self, level: bool) {
        if let Some(irqchip) = self.vm.irqchip() {
            irqchip.set_irq_line(FERR_GSI, level);
        }
    }

    /// Recomputes the summary of the exceptions after the control or status word was written.
    pub fn summarize_x87(&mut self) {
        let x87 = &mut self.vector.x87;
        x87.fsw &= !(fsw::SUMMARY | fsw::BUSY);
        if x87.fsw & !x87.fcw & fsw::EXCEPTIONS != 0 {
            x87.fsw |= fsw::SUMMARY | fsw::BUSY;
        } else if self.cr0 & cr0::NE == 0 {
            self.set_ferr(false);
        }
    }

    /// Replaces the whole x87 state.
    pub fn set_x87(&mut self, x87: X87Image) {
        self.vector.x87 = x87;
        self.summarize_x87();
    }
}

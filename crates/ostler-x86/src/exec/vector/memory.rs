//! Loads and stores of 4 to 32 bytes.

use crate::cpu::Cpu;
use crate::cpu::stop::{Exec, Stop};
use crate::mmu::Privilege;
use crate::mmu::walk::Access;

impl Cpu {
    /// Loads a vector operand.
    #[inline(always)]
    pub fn load_vector(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), Stop> {
        match self.host_run(linear, Access::Read) {
            Some((host, left)) if left >= buffer.len() => {
                // SAFETY: the bytes are in one page of guest memory, mapped for reading.
                unsafe { std::ptr::copy_nonoverlapping(host.cast_const(), buffer.as_mut_ptr(), buffer.len()) };
                Ok(())
            }
            _ => self.load_bytes(linear, buffer),
        }
    }

    /// Accesses of elements under a mask, whose alignment is never checked (SDM vol. 2, VMASKMOV).
    pub fn without_alignment_checks<R>(&mut self, access: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.mmu.privilege;
        if before == Privilege::UserAligned {
            self.mmu.privilege = Privilege::User;
        }
        let result = access(self);
        self.mmu.privilege = before;
        result
    }

    /// Stores a vector operand.
    #[inline(always)]
    pub fn store_vector(&mut self, linear: u64, data: &[u8]) -> Exec {
        match self.host_run(linear, Access::Write) {
            Some((host, left)) if left >= data.len() => {
                // SAFETY: the bytes are in one page of guest memory, mapped for writing.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), host, data.len()) };
                Ok(())
            }
            _ => self.store_bytes(linear, data),
        }
    }

    /// Faults as a store of `len` bytes would, before anything else has happened.
    #[inline(always)]
    pub fn probe_vector(&mut self, linear: u64, len: usize) -> Exec {
        match self.host_run(linear, Access::Write) {
            Some((_, left)) if left >= len => Ok(()),
            _ => self.probe_write(linear, len),
        }
    }
}

//! Segmentation: checks of memory operands, and loads of segment registers.

use crate::cpu::segment::{CS, DATA_RIGHTS, SS, SegmentRegister};
use crate::cpu::stop::{Exec, Stop, vector};
use crate::cpu::{Cpu, Mode};
use crate::exec::far::descriptor::{is_null, rpl, selector_error};

impl Cpu {
    /// The linear address of `offset` in `segment`, checked against type and limit.
    pub fn checked_linear(&mut self, segment: usize, offset: u64, bytes: usize, write: bool) -> Result<u64, Stop> {
        let register = &self.segments[segment];
        let type_allows = if write { register.rights.writable() } else { register.rights.readable() };
        let allowed = !register.unusable && (type_allows || self.is_real_or_v86());
        if allowed && register.within_limit(offset, offset.wrapping_add(bytes as u64 - 1)) {
            return Ok(self.linear_of(segment, offset));
        }
        let vector = if segment == SS { vector::SS } else { vector::GP };
        Err(self.raise_error(vector, 0))
    }

    /// Loads a data segment register or SS, as MOV and POP do (SDM vol. 2, MOV).
    pub fn load_segment(&mut self, index: usize, selector: u16) -> Exec {
        let register = if self.is_real_or_v86() {
            real_segment(&self.segments[index], selector)
        } else {
            self.checked_segment(index, selector, self.cpl)?
        };
        self.segments[index] = register;
        self.update_mode();
        Ok(())
    }

    /// What ES, DS, FS, GS or SS becomes by `selector` in protected mode, at privilege level `cpl`.
    pub fn checked_segment(&mut self, index: usize, selector: u16, cpl: u8) -> Result<SegmentRegister, Stop> {
        if is_null(selector) {
            if index != SS {
                return Ok(SegmentRegister::null(selector));
            }
            if self.mode == Mode::Long && cpl < 3 && rpl(selector) == cpl {
                return Ok(SegmentRegister { selector, ..crate::event::null_stack(cpl) });
            }
            return Err(self.gp(0));
        }
        let error = selector_error(selector);
        let descriptor = self.read_descriptor(selector, vector::GP)?;
        let (rights, rpl) = (descriptor.rights(), rpl(selector));
        let allowed = if index == SS {
            rights.writable() && rpl == cpl && descriptor.dpl() == cpl
        } else {
            rights.readable() && (rights.conforming() || rpl.max(cpl) <= descriptor.dpl())
        };
        if !allowed {
            return Err(self.gp(error));
        }
        if !descriptor.present() {
            return Err(self.raise_error(if index == SS { vector::SS } else { vector::NP }, error));
        }
        Ok(self.mark_accessed(descriptor)?.segment(selector))
    }

    /// Replaces CS and RIP.
    pub fn set_code(&mut self, code: SegmentRegister, rip: u64) {
        self.segments[CS] = code;
        self.rip = rip;
        self.update_mode();
    }
}

/// Real and virtual-8086 mode change selector and base only; the limit stays, which is how "unreal" mode comes about.
pub fn real_segment(before: &SegmentRegister, selector: u16) -> SegmentRegister {
    let keeps = !before.unusable && before.rights.is_user();
    SegmentRegister {
        selector,
        base: u64::from(selector) << 4,
        limit: if keeps { before.limit } else { 0xffff },
        rights: if keeps { before.rights } else { DATA_RIGHTS },
        unusable: false,
    }
}

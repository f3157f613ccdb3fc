//! Segment and gate descriptors in the GDT and the LDT (SDM vol. 3, 3.4.5 and 5.8.3).

use crate::cpu::Cpu;
use crate::cpu::segment::{LDTR, Rights, SegmentRegister};
use crate::cpu::stop::{Exec, Stop, vector};

/// Type fields of system descriptors; in long mode, the 32-bit ones are the 64-bit ones.
pub mod kind {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    pub const TSS32: u8 = 9;
    pub const TSS32_BUSY: u8 = 11;
    pub const CALL_GATE32: u8 = 12;
    pub const INTERRUPT_GATE32: u8 = 14;
    pub const TRAP_GATE32: u8 = 15;
}

/// Bit 40 of a code or data descriptor.
const ACCESSED: u64 = 1 << 40;

/// The part of a selector that error codes have.
pub fn selector_error(selector: u16) -> u32 {
    u32::from(selector & 0xfffc)
}

pub fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

pub fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// The eight bytes of a descriptor, or the first eight of a longer one.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    pub bits: u64,
    /// Where it is.
    pub linear: u64,
}

impl Descriptor {
    pub fn rights(self) -> Rights {
        Rights((self.bits >> 40) as u16 & 0xf0ff)
    }
    pub fn kind(self) -> u8 {
        self.rights().kind()
    }
    pub fn dpl(self) -> u8 {
        self.rights().dpl()
    }
    pub fn present(self) -> bool {
        self.rights().present()
    }
    /// A system descriptor of the given type.
    pub fn is_system(self, kind: u8) -> bool {
        !self.rights().is_user() && self.kind() == kind
    }
    pub fn base(self) -> u64 {
        self.bits >> 16 & 0xff_ffff | self.bits >> 32 & 0xff00_0000
    }
    /// In bytes.
    pub fn limit(self) -> u32 {
        let limit = (self.bits & 0xffff | self.bits >> 32 & 0xf_0000) as u32;
        if self.rights().0 & Rights::GRANULAR != 0 { limit << 12 | 0xfff } else { limit }
    }
    /// A gate's target.
    pub fn gate_selector(self) -> u16 {
        (self.bits >> 16) as u16
    }
    /// A gate's entry point; 16-bit gates have 16 bits of it.
    pub fn gate_offset(self) -> u64 {
        let low = self.bits & 0xffff;
        if self.kind() & 8 != 0 { low | self.bits >> 32 & 0xffff_0000 } else { low }
    }
    /// How many words or doublewords a call gate copies from stack to stack.
    pub fn parameter_count(self) -> u32 {
        (self.bits >> 32 & 31) as u32
    }
    /// The segment register after this descriptor was loaded through `selector`.
    pub fn segment(self, selector: u16) -> SegmentRegister {
        SegmentRegister { selector, base: self.base(), limit: self.limit(), rights: self.rights(), unusable: false }
    }
}

impl Cpu {
    /// The linear address of the descriptor of `selector`; `None` past the end of its table.
    fn descriptor_address(&self, selector: u16, bytes: u64) -> Option<u64> {
        let offset = u64::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else {
            let ldt = &self.segments[LDTR];
            if ldt.unusable {
                return None;
            }
            (ldt.base, u64::from(ldt.limit))
        };
        (offset + bytes - 1 <= limit).then(|| self.wrap(base.wrapping_add(offset)))
    }

    /// The descriptor of `selector`; past the end of its table is exception `on_error`(selector).
    pub fn read_descriptor(&mut self, selector: u16, on_error: u8) -> Result<Descriptor, Stop> {
        match self.descriptor_address(selector, 8) {
            Some(linear) => {
                let bits = self.load_system::<u64>(linear)?;
                Ok(Descriptor { bits, linear })
            }
            None => Err(self.raise_error(on_error, selector_error(selector))),
        }
    }

    /// As [`Cpu::read_descriptor`], for LAR and the like: `None` in place of the exception.
    pub fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Stop> {
        match self.descriptor_address(selector, 8) {
            _ if is_null(selector) => Ok(None),
            Some(linear) => {
                let bits = self.load_system::<u64>(linear)?;
                Ok(Some(Descriptor { bits, linear }))
            }
            None => Ok(None),
        }
    }

    /// The upper half of a 16-byte descriptor of long mode.
    pub fn read_descriptor_high(&mut self, selector: u16, on_error: u8) -> Result<u64, Stop> {
        match self.descriptor_address(selector, 16) {
            Some(linear) => self.load_system::<u64>(self.wrap(linear.wrapping_add(8))),
            None => Err(self.raise_error(on_error, selector_error(selector))),
        }
    }

    /// Sets the accessed bit of a code or data descriptor, if it is not set; returns the descriptor
    /// with it.
    pub fn mark_accessed(&mut self, descriptor: Descriptor) -> Result<Descriptor, Stop> {
        if descriptor.bits & ACCESSED == 0 {
            self.change_descriptor_type(descriptor.linear, |kind| kind | 1)?;
        }
        Ok(Descriptor { bits: descriptor.bits | ACCESSED, ..descriptor })
    }

    /// Changes byte 5 of a descriptor, atomically.
    pub fn change_descriptor_type(&mut self, linear: u64, change: impl Fn(u8) -> u8) -> Exec {
        let byte = self.wrap(linear.wrapping_add(5));
        self.as_supervisor(|cpu| cpu.update::<u8>(byte, true, |_, kind| change(kind)))
    }

    /// Loads from a descriptor table or a TSS.
    pub fn load_system<W: crate::cpu::width::Width>(&mut self, linear: u64) -> Result<W, Stop> {
        self.as_supervisor(|cpu| cpu.load(linear))
    }

    /// Stores to a TSS.
    pub fn store_system<W: crate::cpu::width::Width>(&mut self, linear: u64, value: W) -> Exec {
        self.as_supervisor(|cpu| cpu.store(linear, value))
    }

    /// The SS that an inner stack gets, checked as the TSS's choice for `cpl` (SDM vol. 3, 6.12.1).
    pub fn inner_stack_segment(&mut self, selector: u16, cpl: u8) -> Result<SegmentRegister, Stop> {
        if is_null(selector) {
            return Err(self.raise_error(vector::TS, 0));
        }
        let error = selector_error(selector);
        let descriptor = self.read_descriptor(selector, vector::TS)?;
        if rpl(selector) != cpl || descriptor.dpl() != cpl || !descriptor.rights().writable() {
            return Err(self.raise_error(vector::TS, error));
        }
        if !descriptor.present() {
            return Err(self.raise_error(vector::SS, error));
        }
        Ok(self.mark_accessed(descriptor)?.segment(selector))
    }
}

//! Address spaces, and what of their translations is forgotten when (SDM vol. 3, 4.10).

use crate::cpu::Cpu;
use crate::cpu::control::cr4;

/// The PCID in CR3 and in INVPCID's descriptor.
const PCID: u64 = 0xfff;

impl Cpu {
    /// The PCID in force: 0 unless CR4.PCIDE is set.
    fn pcid(&self) -> u16 {
        if self.cr4 & cr4::PCIDE != 0 { (self.cr3 & PCID) as u16 } else { 0 }
    }

    /// Forgets every translation, of data and of code.
    pub fn flush_tlb(&mut self) {
        self.mmu.spaces.flush(self.pcid());
        self.mmu.tlb.flush();
        self.space_changed(true);
    }

    /// After a write to CR3: forgets the address space that it names, unless that is to be kept.
    pub fn switch_space(&mut self, keep: bool) {
        let exhausted = self.mmu.spaces.switch(self.pcid(), keep);
        self.space_changed(exhausted);
    }

    /// Forgets the address space `pcid` but for global pages.
    pub fn flush_space(&mut self, pcid: u64) {
        let exhausted = self.mmu.spaces.flush_space((pcid & PCID) as u16);
        self.space_changed(exhausted);
    }

    /// Forgets all address spaces but for global pages.
    pub fn flush_spaces(&mut self) {
        let exhausted = self.mmu.spaces.flush_spaces();
        self.space_changed(exhausted);
    }

    /// Forgets the translation of the page of `linear` in the current address space.
    pub fn flush_page(&mut self, linear: u64) {
        self.flush_page_of(u64::from(self.pcid()), linear);
    }

    /// Forgets the translation of the page of `linear` in the address space `pcid`.
    pub fn flush_page_of(&mut self, pcid: u64, linear: u64) {
        self.mmu.tlb.flush_page(linear);
        self.mmu.spaces.flush_page((pcid & PCID) as u16, linear);
        self.code.forget_translation(linear);
    }

    /// The TLB proper is the current address space's, but for global pages.
    fn space_changed(&mut self, exhausted: bool) {
        self.mmu.tlb.flush_space();
        self.code.set_space(self.mmu.spaces.tag());
        if exhausted {
            self.code.forget_translations();
        }
    }
}

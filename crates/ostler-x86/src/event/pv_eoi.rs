//! KVM's paravirtual end of interrupt (`Documentation/virt/kvm/x86/msr.rst`, `MSR_KVM_PV_EOI_EN`).
//!
//! While nothing else waits behind the one interrupt in service, a bit in the guest's memory is set. A guest that
//! clears it has ended the interrupt without a word to the local APIC, which hears of it when it next matters.

use crate::cpu::Cpu;

/// Of the MSR: the guest has a word for us.
pub const ENABLED: u64 = 1 << 0;
/// Of the MSR, besides the address of a multiple of 4.
const RESERVED: u64 = 1 << 1;
/// Of the word: this interrupt may be ended by clearing the bit.
const LAZY: u8 = 1 << 0;

impl Cpu {
    /// Sets the MSR; false is #GP.
    pub fn write_pv_eoi(&mut self, value: u64) -> bool {
        let at = value & !ENABLED;
        let backed = || self.vm.memory().read(at, &mut [0; 4]).is_ok();
        if value & RESERVED != 0 || value & ENABLED != 0 && !backed() {
            return false;
        }
        self.settle_pv_eoi();
        self.msrs.pv_eoi = value;
        true
    }

    /// After an interrupt went into service: lets the guest end it lazily, if it is alone.
    pub(super) fn offer_pv_eoi(&mut self) {
        let alone = || self.lapic.as_ref().is_some_and(|lapic| lapic.may_end_lazily());
        if self.msrs.pv_eoi & ENABLED != 0 && alone() {
            self.events.pv_eoi_offered = self.change_pv_eoi(|word| word | LAZY).is_some();
        }
    }

    /// Takes the offer back, and ends the interrupt if the guest took it. Has to come before whatever depends on what
    /// is in service.
    #[inline]
    pub fn settle_pv_eoi(&mut self) {
        if self.events.pv_eoi_offered {
            self.take_pv_eoi_back();
        }
    }

    #[cold]
    fn take_pv_eoi_back(&mut self) {
        self.events.pv_eoi_offered = false;
        let ended = self.change_pv_eoi(|word| word & !LAZY).is_some_and(|word| word & LAZY == 0);
        if ended && let Some(lapic) = &self.lapic {
            lapic.eoi();
        }
    }

    /// Changes the guest's word and returns what it was; `None` where memory is no longer there. Only this vCPU's
    /// guest code writes it, too.
    fn change_pv_eoi(&self, change: impl FnOnce(u8) -> u8) -> Option<u8> {
        let (memory, at) = (self.vm.memory(), self.msrs.pv_eoi & !ENABLED);
        let mut word = [0];
        memory.read(at, &mut word).ok()?;
        memory.write(at, &[change(word[0])]).ok()?;
        Some(word[0])
    }
}

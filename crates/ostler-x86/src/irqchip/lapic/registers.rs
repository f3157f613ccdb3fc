//! The register page, and what reading and writing it does in xAPIC mode.

use std::sync::atomic::{AtomicU32, Ordering};

use ostler_engine::regs::LapicState;

use super::Lapic;
use ostler_irqchip::message::EVERYONE;

/// Offsets of the registers.
pub(super) mod reg {
    pub const ID: u32 = 0x020;
    pub const VERSION: u32 = 0x030;
    pub const TPR: u32 = 0x080;
    pub const APR: u32 = 0x090;
    pub const PPR: u32 = 0x0A0;
    pub const EOI: u32 = 0x0B0;
    pub const LDR: u32 = 0x0D0;
    pub const DFR: u32 = 0x0E0;
    pub const SVR: u32 = 0x0F0;
    pub const ISR: u32 = 0x100;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERFMON: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const INITIAL_COUNT: u32 = 0x380;
    pub const CURRENT_COUNT: u32 = 0x390;
    pub const DIVIDE: u32 = 0x3E0;
    /// x2APIC mode only.
    pub const SELF_IPI: u32 = 0x3F0;
}

/// Where the 256-bit registers start, in the page's 32-bit registers.
pub(super) mod bank {
    pub const ISR: usize = 0x10;
    pub const TMR: usize = 0x18;
    pub const IRR: usize = 0x20;
}

/// Bits of an LVT entry.
pub(super) mod lvt {
    pub const MASKED: u32 = 1 << 16;
    /// Delivery status, the chip's own.
    pub const DELIVERY_STATUS: u32 = 1 << 12;
    /// Of LINT0 and LINT1 only, the chip's own.
    pub const REMOTE_IRR: u32 = 1 << 14;
}

/// Bits of ESR.
pub(super) mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

pub(super) const SVR_ENABLED: u32 = 1 << 8;
pub(super) const SVR_SUPPRESS_EOI_BROADCAST: u32 = 1 << 12;
/// Vector, enable, focus processor checking, EOI broadcast suppression.
pub(super) const SVR_WRITABLE: u32 = 0x13FF;
/// Integrated APIC, 6 LVT entries, EOI broadcast suppression.
const VERSION: u32 = 0x14 | 5 << 16 | 1 << 24;
/// All of ICR but delivery status and reserved bits.
pub(super) const ICR_WRITABLE: u32 = 0x000C_CFFF;
const LVTS: [u32; 6] =
    [reg::LVT_TIMER, reg::LVT_THERMAL, reg::LVT_PERFMON, reg::LVT_LINT0, reg::LVT_LINT1, reg::LVT_ERROR];

/// The 64 registers of the page: register `n` is at offset `16 * n`.
#[derive(Debug)]
pub(super) struct Page([AtomicU32; 64]);

impl Default for Page {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; 64])
    }
}

impl Page {
    pub(super) fn get(&self, register: u32) -> u32 {
        self.0[(register >> 4) as usize & 63].load(Ordering::Acquire)
    }

    pub(super) fn set(&self, register: u32, value: u32) {
        self.0[(register >> 4) as usize & 63].store(value, Ordering::Release);
    }

    pub(super) fn bit(&self, bank: usize, vector: u8) -> bool {
        self.word(bank, vector).load(Ordering::Acquire) & 1 << (vector & 31) != 0
    }

    pub(super) fn set_bit(&self, bank: usize, vector: u8) {
        self.word(bank, vector).fetch_or(1 << (vector & 31), Ordering::AcqRel);
    }

    pub(super) fn clear_bit(&self, bank: usize, vector: u8) {
        let word = self.word(bank, vector);
        let bit = 1 << (vector & 31);
        // Mostly for TMR, whose bits seldom change: a load leaves the line shared.
        if word.load(Ordering::Acquire) & bit != 0 {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// The highest vector that is set.
    pub(super) fn highest(&self, bank: usize) -> Option<u8> {
        (0..8u8).rev().find_map(|index| {
            let word = self.0[bank + usize::from(index)].load(Ordering::Acquire);
            word.checked_ilog2().map(|bit| index * 32 + bit as u8)
        })
    }

    /// How many vectors are set.
    pub(super) fn count(&self, bank: usize) -> u32 {
        self.0[bank..bank + 8].iter().map(|word| word.load(Ordering::Acquire).count_ones()).sum()
    }

    /// The values after power-up and INIT (SDM 3A 11.4.7.1).
    pub(super) fn reset(&self) {
        self.0.iter().for_each(|register| register.store(0, Ordering::Release));
        self.set(reg::DFR, 0xFFFF_FFFF);
        self.set(reg::SVR, 0xFF);
        LVTS.into_iter().for_each(|entry| self.set(entry, lvt::MASKED));
    }

    fn word(&self, bank: usize, vector: u8) -> &AtomicU32 {
        &self.0[bank + usize::from(vector >> 5)]
    }
}

/// Whether an xAPIC's LDR and DFR make it a member of the logical `destination`.
pub(super) fn matches_logical(page: &Page, destination: u32) -> bool {
    if matches!(destination, 0xFF | EVERYONE) {
        return true;
    }
    let ldr = page.get(reg::LDR) >> 24;
    match page.get(reg::DFR) >> 28 {
        0xF => destination & ldr != 0,
        0 => destination >> 4 == ldr >> 4 && destination & ldr & 0xF != 0,
        _ => false,
    }
}

/// The bits of an LVT entry that can be written; `None` for other registers.
pub(super) fn lvt_writable(register: u32) -> Option<u32> {
    const VECTOR: u32 = 0xFF;
    const DELIVERY: u32 = 7 << 8;
    const POLARITY_AND_TRIGGER: u32 = 1 << 13 | 1 << 15;
    const TIMER_MODE: u32 = 3 << 17;
    match register {
        reg::LVT_TIMER => Some(VECTOR | lvt::MASKED | TIMER_MODE),
        reg::LVT_THERMAL | reg::LVT_PERFMON => Some(VECTOR | lvt::MASKED | DELIVERY),
        reg::LVT_LINT0 | reg::LVT_LINT1 => Some(VECTOR | lvt::MASKED | DELIVERY | POLARITY_AND_TRIGGER),
        reg::LVT_ERROR => Some(VECTOR | lvt::MASKED),
        _ => None,
    }
}

impl Lapic {
    /// Reads the register at `offset` of the MMIO page. Only the first 4 of each 16 bytes belong to
    /// a register; the others, and registers that do not exist, read as zeros.
    pub fn read(&self, offset: u64) -> u32 {
        match register_at(offset) {
            Some(register) => self.read_register(register),
            None => {
                self.report(error::ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes the register at `offset` of the MMIO page; read-only ones keep their value.
    pub fn write(&self, offset: u64, value: u32) {
        match register_at(offset) {
            Some(reg::LDR) => self.page.set(reg::LDR, value & 0xFF00_0000),
            Some(reg::DFR) => self.page.set(reg::DFR, value | 0x0FFF_FFFF),
            Some(reg::ICR_HIGH) => self.page.set(reg::ICR_HIGH, value & 0xFF00_0000),
            Some(reg::ICR_LOW) => {
                let destination = self.page.get(reg::ICR_HIGH) >> 24;
                self.page.set(reg::ICR_LOW, value & ICR_WRITABLE);
                self.send_ipi(value, if destination == 0xFF { EVERYONE } else { destination });
            }
            Some(register) => self.write_register(register, value),
            None => self.report(error::ILLEGAL_REGISTER),
        }
    }

    /// The page as `KVM_GET_LAPIC` gives it; in x2APIC mode, ID is the 32-bit id.
    pub fn state(&self) -> LapicState {
        let mut state = LapicState { regs: [0; 1024] };
        for (index, bytes) in state.regs.chunks_exact_mut(16).enumerate() {
            let register = index as u32 * 16;
            bytes[..4].copy_from_slice(&self.read_register(register).to_le_bytes());
        }
        state
    }

    /// Takes over a page that [`Lapic::state`] gave; false, and nothing changes, when it cannot be
    /// this APIC's. `IA32_APIC_BASE` has to be set before, `IA32_TSC_DEADLINE` after.
    pub fn set_state(&self, state: &LapicState) -> bool {
        let saved = saved_registers(state);
        let id = saved[(reg::ID >> 4) as usize];
        // Vectors 0..16 can be neither requested nor in service.
        let illegal = [bank::ISR, bank::TMR, bank::IRR].iter().any(|&bank| saved[bank] & 0xFFFF != 0);
        if illegal || (id != self.id && id != self.id << 24) {
            return false;
        }
        self.disarm();
        for (register, value) in (0..).step_by(16).zip(saved) {
            self.page.set(register, restored(register, value));
        }
        self.resume_count(saved[(reg::CURRENT_COUNT >> 4) as usize]);
        self.look_again();
        true
    }

    pub(super) fn read_register(&self, register: u32) -> u32 {
        match register {
            reg::ID => self.id_register(),
            reg::VERSION => VERSION,
            reg::APR => u32::from(self.arbitration_priority()),
            reg::PPR => u32::from(self.ppr()),
            reg::LDR => self.ldr(),
            reg::CURRENT_COUNT => self.current_count(),
            reg::EOI | reg::SELF_IPI => 0,
            _ => self.page.get(register),
        }
    }

    /// The effects of a write that are the same in xAPIC and x2APIC mode.
    pub(super) fn write_register(&self, register: u32, value: u32) {
        match register {
            reg::TPR => self.set_tpr(value as u8),
            reg::EOI => self.eoi(),
            reg::SVR => self.write_svr(value),
            reg::ESR => self.latch_errors(),
            reg::INITIAL_COUNT => self.set_initial_count(value),
            reg::DIVIDE => self.set_divide(value),
            _ => {
                if let Some(writable) = lvt_writable(register) {
                    self.write_lvt(register, value & writable);
                }
            }
        }
    }

    fn write_svr(&self, value: u32) {
        self.page.set(reg::SVR, value & SVR_WRITABLE);
        if value & SVR_ENABLED == 0 {
            LVTS.into_iter().for_each(|entry| self.page.set(entry, self.page.get(entry) | lvt::MASKED));
        }
        self.look_again();
    }

    fn write_lvt(&self, entry: u32, value: u32) {
        // A software-disabled APIC keeps its entries masked.
        let value = if self.is_software_enabled() { value } else { value | lvt::MASKED };
        if entry == reg::LVT_TIMER {
            self.set_timer_entry(value);
        } else {
            self.page.set(entry, value);
        }
        if entry == reg::LVT_LINT0 {
            self.lint0_changed();
        }
    }

    /// A LINT0 that was just connected to a PIC with a request has to notice.
    pub(super) fn lint0_changed(&self) {
        if self.chip.upgrade().is_some_and(|chip| chip.external_pending()) {
            self.lint0(false);
        }
    }

    fn latch_errors(&self) {
        self.page.set(reg::ESR, self.errors.swap(0, Ordering::AcqRel));
    }

    /// SDM 3A 11.6.2.4.
    fn arbitration_priority(&self) -> u8 {
        let tpr = self.tpr();
        let requested = self.page.highest(bank::IRR).unwrap_or(0) & 0xF0;
        let in_service = self.page.highest(bank::ISR).unwrap_or(0) & 0xF0;
        if tpr & 0xF0 >= requested && tpr & 0xF0 > in_service { tpr } else { (tpr & 0xF0 & in_service).max(requested) }
    }
}

/// The register an MMIO access at `offset` means; `None` for reserved ones.
fn register_at(offset: u64) -> Option<u32> {
    let register = (offset & 0xFFF) as u32;
    let exists = matches!(register, reg::ID | reg::VERSION | reg::TPR..=reg::SVR | reg::ISR..=reg::ESR)
        || matches!(register, reg::ICR_LOW..=reg::CURRENT_COUNT | reg::DIVIDE);
    (exists && register & 0xF == 0).then_some(register)
}

fn saved_registers(state: &LapicState) -> [u32; 64] {
    std::array::from_fn(|index| {
        let bytes = &state.regs[index * 16..];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    })
}

/// What of a saved register is kept: nothing of those that are computed, no reserved bits.
fn restored(register: u32, value: u32) -> u32 {
    match register {
        reg::TPR => value & 0xFF,
        reg::LDR => value & 0xFF00_0000,
        reg::DFR => value | 0x0FFF_FFFF,
        reg::SVR => value & SVR_WRITABLE,
        reg::ICR_LOW => value & ICR_WRITABLE,
        reg::ICR_HIGH | reg::INITIAL_COUNT | reg::ISR..=reg::ESR => value,
        reg::DIVIDE => value & 0xB,
        _ => lvt_writable(register).map_or(0, |writable| value & writable),
    }
}

//! `IA32_APIC_BASE`, the x2APIC registers and `IA32_TSC_DEADLINE`: the local APIC by way of MSRs.

use std::sync::atomic::Ordering;

use super::registers::{ICR_WRITABLE, SVR_WRITABLE, lvt, lvt_writable, reg};
use ostler_irqchip::message::{EVERYONE, Message};

use super::Lapic;
use ostler_irqchip::message::Delivery;

/// `IA32_APIC_BASE`.
pub const APIC_BASE_MSR: u32 = 0x1B;
/// `IA32_TSC_DEADLINE`.
pub const TSC_DEADLINE_MSR: u32 = 0x6E0;

const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8FF;
const X2APIC_ICR: u32 = 0x830;

const BOOT_PROCESSOR: u64 = 1 << 8;
const EXTENDED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;
const DEFAULT_BASE: u64 = 0xFEE0_0000;
/// Everything above what a physical address can have (52 bits, whatever CPUID says), and 0..8, 9.
const RESERVED: u64 = !((1 << 52) - 1) | 0x2FF;
const ADDRESS: u64 = ((1 << 52) - 1) & !0xFFF;

/// What EN and EXTD of `IA32_APIC_BASE` select (SDM 3A table 11-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Disabled,
    XApic,
    X2Apic,
}

impl Mode {
    /// `None` for the combination that does not exist.
    fn decode(apic_base: u64) -> Option<Self> {
        match (apic_base & ENABLED != 0, apic_base & EXTENDED != 0) {
            (false, false) => Some(Self::Disabled),
            (true, false) => Some(Self::XApic),
            (true, true) => Some(Self::X2Apic),
            (false, true) => None,
        }
    }
}

/// `IA32_APIC_BASE` after power-up; the boot processor is the one with id 0.
pub(super) fn reset_apic_base(id: u32) -> u64 {
    DEFAULT_BASE | ENABLED | if id == 0 { BOOT_PROCESSOR } else { 0 }
}

impl Lapic {
    /// Where the MMIO page lies in guest-physical memory; `None` while there is none: in x2APIC
    /// mode, and when the APIC is globally disabled.
    pub fn base(&self) -> Option<u64> {
        (self.mode() == Mode::XApic).then(|| self.apic_base_msr() & ADDRESS)
    }

    /// `IA32_APIC_BASE`.
    pub fn apic_base_msr(&self) -> u64 {
        self.apic_base.load(Ordering::Acquire)
    }

    /// Sets `IA32_APIC_BASE` from a saved state: any valid value, whatever the mode is now. False
    /// when it is none.
    pub fn restore_apic_base(&self, value: u64) -> bool {
        let Some(mode) = Mode::decode(value).filter(|_| value & RESERVED == 0) else { return false };
        self.enter(mode, value);
        true
    }

    /// Reads an MSR; `None` is #GP: not one of the local APIC's, or not readable in this mode.
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            APIC_BASE_MSR => Some(self.apic_base_msr()),
            TSC_DEADLINE_MSR => Some(self.tsc_deadline()),
            X2APIC_FIRST..=X2APIC_LAST if self.mode() == Mode::X2Apic => self.read_x2apic(index),
            _ => None,
        }
    }

    /// Writes an MSR; false is #GP.
    pub fn write_msr(&self, index: u32, value: u64) -> bool {
        match index {
            APIC_BASE_MSR => self.write_apic_base(value),
            TSC_DEADLINE_MSR => {
                self.set_tsc_deadline(value);
                true
            }
            X2APIC_FIRST..=X2APIC_LAST if self.mode() == Mode::X2Apic => self.write_x2apic(index, value),
            _ => false,
        }
    }

    pub(super) fn mode(&self) -> Mode {
        // No invalid combination is ever stored.
        Mode::decode(self.apic_base_msr()).unwrap_or(Mode::Disabled)
    }

    /// ID as the current mode shows it: 8 bits on top, or all 32.
    pub(super) fn id_register(&self) -> u32 {
        if self.mode() == Mode::X2Apic { self.id } else { self.id << 24 }
    }

    /// LDR: the guest's in xAPIC mode, derived from the id in x2APIC mode (SDM 3A 11.12.10.2).
    pub(super) fn ldr(&self) -> u32 {
        if self.mode() == Mode::X2Apic { self.cluster() } else { self.page.get(reg::LDR) }
    }

    pub(super) fn matches_cluster(&self, destination: u32) -> bool {
        let ldr = self.cluster();
        destination == EVERYONE || (destination >> 16 == ldr >> 16 && destination & ldr & 0xFFFF != 0)
    }

    fn cluster(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xF)
    }

    /// The guest's write: only the transitions of SDM 3A figure 11-27 are possible.
    fn write_apic_base(&self, value: u64) -> bool {
        let Some(mode) = Mode::decode(value).filter(|_| value & RESERVED == 0) else { return false };
        if matches!((self.mode(), mode), (Mode::X2Apic, Mode::XApic) | (Mode::Disabled, Mode::X2Apic)) {
            return false;
        }
        self.enter(mode, value);
        true
    }

    fn enter(&self, mode: Mode, value: u64) {
        let before = self.mode();
        self.apic_base.store(value, Ordering::Release);
        if before == mode {
            return;
        }
        if mode == Mode::Disabled || before == Mode::Disabled {
            // Being disabled loses all registers.
            self.reset_registers();
        }
        if mode == Mode::X2Apic {
            self.page.set(reg::ICR_HIGH, 0);
        }
        if mode == Mode::Disabled {
            self.lint0_changed();
        }
    }

    fn read_x2apic(&self, index: u32) -> Option<u64> {
        let register = (index - X2APIC_FIRST) << 4;
        match register {
            reg::ICR_LOW => {
                Some(u64::from(self.page.get(reg::ICR_HIGH)) << 32 | u64::from(self.page.get(reg::ICR_LOW)))
            }
            reg::ID | reg::VERSION | reg::TPR | reg::PPR | reg::LDR | reg::SVR | reg::ISR..=reg::ESR => {
                Some(u64::from(self.read_register(register)))
            }
            reg::LVT_TIMER..=reg::CURRENT_COUNT | reg::DIVIDE => Some(u64::from(self.read_register(register))),
            _ => None,
        }
    }

    fn write_x2apic(&self, index: u32, value: u64) -> bool {
        if index == X2APIC_ICR {
            return self.write_x2apic_icr(value);
        }
        let register = (index - X2APIC_FIRST) << 4;
        let Ok(value) = u32::try_from(value) else { return false };
        if x2apic_writable(register).is_none_or(|writable| value & !writable != 0) {
            return false;
        }
        if register == reg::SELF_IPI {
            self.receive(&Message {
                destination: self.id,
                logical: false,
                delivery: Delivery::Fixed,
                vector: value as u8,
                level: false,
            });
        } else {
            self.write_register(register, value);
        }
        true
    }

    fn write_x2apic_icr(&self, value: u64) -> bool {
        const DELIVERY_STATUS: u32 = 1 << 12;
        let command = value as u32 & !DELIVERY_STATUS;
        if command & !ICR_WRITABLE != 0 {
            return false;
        }
        let destination = (value >> 32) as u32;
        self.page.set(reg::ICR_LOW, command);
        self.page.set(reg::ICR_HIGH, destination);
        self.send_ipi(command, destination);
        true
    }
}

/// The bits that an x2APIC register takes; `None` when it cannot be written (SDM 3A table 11-6).
fn x2apic_writable(register: u32) -> Option<u32> {
    match register {
        reg::TPR | reg::SELF_IPI => Some(0xFF),
        reg::EOI | reg::ESR => Some(0),
        reg::SVR => Some(SVR_WRITABLE),
        reg::INITIAL_COUNT => Some(u32::MAX),
        reg::DIVIDE => Some(0xB),
        // Read-only bits may be written with anything.
        reg::LVT_LINT0 | reg::LVT_LINT1 => {
            lvt_writable(register).map(|writable| writable | lvt::DELIVERY_STATUS | lvt::REMOTE_IRR)
        }
        _ => lvt_writable(register).map(|writable| writable | lvt::DELIVERY_STATUS),
    }
}

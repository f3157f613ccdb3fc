//! The local APIC of one vCPU (SDM 3A chapter 11), with x2APIC mode and the TSC deadline timer.
//!
//! The register page is made of atomics: other vCPUs and devices set IRR bits and look at
//! destinations and priorities without a lock, and never wait for the vCPU. ISR and everything the
//! guest writes is changed by the vCPU's own thread. Not modelled: the CMCI and extended LVTs,
//! focus processors, SMI delivery, remote reads, level-triggered LINT pins (they act as
//! edge-triggered; nothing on the board drives LINT1), and spurious interrupts (a request that is
//! masked by TPR between INTR and INTA is not acknowledged at all). Not saved, because KVM's page has no
//! place for it: errors that ESR does not show yet, and an ExtINT message that waits for its INTA.

mod countdown;
mod msr;
mod registers;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::Irqchip;
use crate::signals::{Signals, signal};
use countdown::Countdown;
use msr::Mode;
use ostler_irqchip::message::{Delivery, EVERYONE, Message};
use ostler_irqchip::timer::{Deadlines, Slot};
use ostler_irqchip::{GuestClock, Processors};
use registers::{Page, bank, error, lvt, reg};

pub use msr::{APIC_BASE_MSR, TSC_DEADLINE_MSR};

/// The local APIC of one vCPU.
#[derive(Debug)]
pub struct Lapic {
    id: u32,
    signals: Arc<Signals>,
    clock: Arc<GuestClock>,
    /// The way to the other local APICs and to the IOAPIC.
    chip: Weak<Irqchip>,
    deadlines: Arc<Deadlines>,
    slot: Slot,
    apic_base: AtomicU64,
    page: Page,
    /// Errors since the guest last wrote ESR.
    errors: AtomicU32,
    /// An IOAPIC entry asked this CPU to acknowledge the PIC.
    external: AtomicBool,
    sipi_vector: AtomicU8,
    countdown: Mutex<Countdown>,
}

impl Lapic {
    pub(super) fn new(id: u32, signals: Arc<Signals>, chip: &Irqchip) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let timed: Weak<Self> = Weak::clone(this);
            let lapic = Self {
                id,
                signals,
                clock: Arc::clone(&chip.clock),
                chip: Weak::clone(&chip.this),
                deadlines: Arc::clone(&chip.deadlines),
                slot: chip.deadlines.add(timed),
                apic_base: AtomicU64::new(msr::reset_apic_base(id)),
                page: Page::default(),
                errors: AtomicU32::new(0),
                external: AtomicBool::new(false),
                sipi_vector: AtomicU8::new(0),
                countdown: Mutex::new(Countdown::default()),
            };
            lapic.reset_registers();
            lapic
        })
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// The vector of the last startup IPI: the CPU starts at physical address `vector << 12`.
    pub fn sipi_vector(&self) -> u8 {
        self.sipi_vector.load(Ordering::Acquire)
    }

    pub fn set_sipi_vector(&self, vector: u8) {
        self.sipi_vector.store(vector, Ordering::Release);
    }

    /// The task priority register; CR8 is its upper half.
    pub fn tpr(&self) -> u8 {
        self.page.get(reg::TPR) as u8
    }

    /// Sets the task priority, and raises [`signal::INTERRUPT`] when this lets a request through.
    pub fn set_tpr(&self, tpr: u8) {
        self.page.set(reg::TPR, u32::from(tpr));
        self.look_again();
    }

    /// What INIT does to the local APIC: everything but the id and `IA32_APIC_BASE` (SDM 3A 11.4.7.3).
    pub fn reset_by_init(&self) {
        self.reset_registers();
    }

    /// The end-of-interrupt register, as a write to it or the paravirtual EOI means it.
    pub fn eoi(&self) {
        let Some(vector) = self.page.highest(bank::ISR) else { return };
        self.page.clear_bit(bank::ISR, vector);
        let suppressed = self.page.get(reg::SVR) & registers::SVR_SUPPRESS_EOI_BROADCAST != 0;
        if self.page.bit(bank::TMR, vector)
            && !suppressed
            && let Some(chip) = self.chip.upgrade()
        {
            chip.end_of_interrupt(vector);
        }
        self.look_again();
    }

    /// Whether the end of what is in service concerns nobody else: it is one interrupt, of an edge, and none waits.
    pub fn may_end_lazily(&self) -> bool {
        let Some(vector) = self.page.highest(bank::ISR) else { return false };
        self.page.count(bank::ISR) == 1 && !self.page.bit(bank::TMR, vector) && self.page.highest(bank::IRR).is_none()
    }

    /// The request that is more urgent than what the CPU is doing, if any.
    pub(super) fn deliverable(&self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        let vector = self.page.highest(bank::IRR)?;
        (vector & 0xF0 > self.ppr() & 0xF0).then_some(vector)
    }

    /// Moves the deliverable request from IRR to ISR.
    pub(super) fn acknowledge(&self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.page.clear_bit(bank::IRR, vector);
        self.page.set_bit(bank::ISR, vector);
        Some(vector)
    }

    /// Whether this CPU takes interrupts from the PIC now.
    pub(super) fn accepts_external(&self) -> bool {
        let lvt0 = self.page.get(reg::LVT_LINT0);
        let through_lint0 = lvt0 & lvt::MASKED == 0 && Delivery::decode(lvt0 >> 8) == Delivery::ExtInt;
        !self.is_enabled() || through_lint0 || self.external.load(Ordering::Acquire)
    }

    /// The PIC is acknowledged by this CPU.
    pub(super) fn external_taken(&self) {
        self.external.store(false, Ordering::Release);
    }

    /// The PIC's output, which is LINT0, is high; `rose` when it was not before.
    pub(super) fn lint0(&self, rose: bool) {
        if self.accepts_external() {
            self.signals.raise(signal::INTERRUPT);
        } else if rose {
            self.deliver_local(reg::LVT_LINT0);
        }
    }

    /// Whether `message` addresses this local APIC (SDM 3A 11.6.2 and 11.12.10).
    pub(super) fn is_addressed(&self, message: &Message) -> bool {
        match self.mode() {
            Mode::Disabled => false,
            Mode::XApic if message.logical => registers::matches_logical(&self.page, message.destination),
            Mode::XApic => matches!(message.destination, 0xFF | EVERYONE) || message.destination == self.id,
            Mode::X2Apic if message.logical => self.matches_cluster(message.destination),
            Mode::X2Apic => message.destination == EVERYONE || message.destination == self.id,
        }
    }

    /// Takes a message that addresses this local APIC; false when it refuses it.
    pub(super) fn receive(&self, message: &Message) -> bool {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => return self.accept(message.vector, message.level),
            Delivery::Nmi => self.signals.raise(signal::NMI),
            Delivery::Init => {
                // A startup IPI from before this INIT is void.
                self.signals.take(signal::SIPI);
                self.signals.raise(signal::INIT);
            }
            Delivery::Startup => {
                self.set_sipi_vector(message.vector);
                self.signals.raise(signal::SIPI);
            }
            Delivery::ExtInt => {
                self.external.store(true, Ordering::Release);
                self.signals.raise(signal::INTERRUPT);
            }
            Delivery::Smi | Delivery::Reserved => return false,
        }
        true
    }

    /// Whether `IA32_APIC_BASE` enables the local APIC.
    pub(super) fn is_enabled(&self) -> bool {
        self.mode() != Mode::Disabled
    }

    /// Whether it takes interrupts that have a vector.
    pub(super) fn is_software_enabled(&self) -> bool {
        self.page.get(reg::SVR) & registers::SVR_ENABLED != 0
    }

    /// The processor priority: the higher class of TPR and what is in service.
    pub(super) fn ppr(&self) -> u8 {
        let tpr = self.tpr();
        let in_service = self.page.highest(bank::ISR).unwrap_or(0);
        if tpr & 0xF0 >= in_service & 0xF0 { tpr } else { in_service & 0xF0 }
    }

    /// Latches a request in IRR; false when the APIC is software-disabled or the vector is illegal.
    fn accept(&self, vector: u8, level: bool) -> bool {
        if !self.is_software_enabled() {
            return false;
        }
        if vector < 16 {
            self.report(error::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        if level {
            self.page.set_bit(bank::TMR, vector);
        } else {
            self.page.clear_bit(bank::TMR, vector);
        }
        self.page.set_bit(bank::IRR, vector);
        self.signals.raise(signal::INTERRUPT);
        true
    }

    /// Delivers an interrupt of the local vector table, unless it is masked.
    fn deliver_local(&self, entry: u32) {
        let bits = self.page.get(entry);
        if bits & lvt::MASKED != 0 {
            return;
        }
        // The timer's and the error's entries have no delivery mode field.
        let fixed = matches!(entry, reg::LVT_TIMER | reg::LVT_ERROR);
        let delivery = if fixed { Delivery::Fixed } else { Delivery::decode(bits >> 8) };
        if matches!(delivery, Delivery::LowestPriority | Delivery::Startup) {
            return;
        }
        self.receive(&Message { destination: self.id, logical: false, delivery, vector: bits as u8, level: false });
    }

    /// Sends what the guest wrote into ICR to `destination`.
    fn send_ipi(&self, command: u32, destination: u32) {
        let message = Message {
            destination,
            logical: command & 1 << 11 != 0,
            delivery: Delivery::decode(command >> 8),
            vector: command as u8,
            level: false,
        };
        let init_deassert = message.delivery == Delivery::Init && command & (1 << 14 | 1 << 15) == 1 << 15;
        if init_deassert || matches!(message.delivery, Delivery::Reserved | Delivery::ExtInt) {
            return;
        }
        if message.delivery.has_vector() && message.vector < 16 {
            self.report(error::SEND_ILLEGAL_VECTOR);
            return;
        }
        let Some(chip) = self.chip.upgrade() else { return };
        match command >> 18 & 3 {
            0 => chip.deliver(&message),
            1 => self.receive(&message),
            2 => chip.deliver_to(&message, |_| true),
            _ => chip.deliver_to(&message, |lapic| lapic.id != self.id),
        };
    }

    /// Notes an error, and tells the guest of one that was not noted yet.
    fn report(&self, error: u32) {
        if self.errors.fetch_or(error, Ordering::AcqRel) & error == 0 {
            self.deliver_local(reg::LVT_ERROR);
        }
    }

    /// Makes the vCPU look for interrupts after something that may have unblocked one.
    pub(super) fn look_again(&self) {
        if self.deliverable().is_some() {
            self.signals.raise(signal::INTERRUPT);
        }
    }

    fn reset_registers(&self) {
        self.disarm();
        self.page.reset();
        self.errors.store(0, Ordering::Release);
        self.external.store(false, Ordering::Release);
        if self.id == 0 {
            // Virtual wire mode, as firmware leaves the boot processor for its operating system.
            self.page.set(reg::LVT_LINT0, 0x700);
        }
    }
}

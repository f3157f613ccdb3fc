//! The local APICs of the `soft` accelerator, and the board's chips before them.
//!
//! * [`lapic`]: one per vCPU; PIC, IOAPIC and PIT are those of `ostler-irqchip`.
//!
//! Lock order: that of the chips, then the list of local APICs. Local APICs take interrupts without a lock, so that all
//! of it may be held while delivering.

mod lapic;

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak};

use ostler_engine::{AccelError, Msi};
use ostler_irqchip::message::{Delivery, Message};
use ostler_irqchip::timer::Deadlines;
use ostler_irqchip::{Chips, GuestClock, Processors, Timers};

use crate::signals::Signals;

pub use lapic::{APIC_BASE_MSR, Lapic, TSC_DEADLINE_MSR};
pub use ostler_irqchip::IOAPIC_BASE;

/// The interrupt controllers of one VM: the chips, which this derefs to, and the local APICs.
#[derive(Debug)]
pub struct Irqchip {
    clock: Arc<GuestClock>,
    this: Weak<Self>,
    deadlines: Arc<Deadlines>,
    chips: Arc<Chips>,
    /// Sorted by id.
    lapics: RwLock<Vec<Arc<Lapic>>>,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: AtomicUsize,
}

impl Irqchip {
    /// Fails when the host has no thread left for the timers.
    pub fn new(clock: Arc<GuestClock>) -> Result<Arc<Self>, AccelError> {
        let timers = Timers::start(Arc::clone(&clock))?;
        let deadlines = Arc::clone(&timers.deadlines);
        Ok(Arc::new_cyclic(|this: &Weak<Self>| {
            let processors: Weak<Self> = Weak::clone(this);
            Self {
                clock,
                this: Weak::clone(this),
                deadlines,
                chips: Chips::new(timers, processors),
                lapics: RwLock::new(Vec::new()),
                turn: AtomicUsize::new(0),
            }
        }))
    }

    /// Adds the local APIC of vCPU `id`, which is told of interrupts through `signals`. 0 is the
    /// boot processor. A second one with the same id takes the place of the first.
    pub fn add_lapic(&self, id: u32, signals: Arc<Signals>) -> Arc<Lapic> {
        let lapic = Lapic::new(id, signals, self);
        let mut lapics = self.lapics.write().unwrap_or_else(PoisonError::into_inner);
        match lapics.binary_search_by_key(&id, |lapic| lapic.id()) {
            Ok(index) => lapics[index] = Arc::clone(&lapic),
            Err(index) => lapics.insert(index, Arc::clone(&lapic)),
        }
        lapic
    }

    /// Delivers an MSI; false when no local APIC takes it.
    pub fn signal_msi(&self, msi: Msi) -> bool {
        Message::from_msi(msi).is_some_and(|message| self.deliver(&message))
    }

    /// Whether the vCPU with `lapic` could take an interrupt now, were it enabled by RFLAGS.IF.
    pub fn has_interrupt(&self, lapic: &Lapic) -> bool {
        self.external_pending_for(lapic) || lapic.deliverable().is_some()
    }

    /// INTA: the vCPU with `lapic` takes its most urgent interrupt, and gets its vector.
    pub fn acknowledge(&self, lapic: &Lapic) -> Option<u8> {
        if !self.external_pending_for(lapic) {
            return lapic.acknowledge();
        }
        let Some(vector) = self.chips.acknowledge(|| lapic.external_taken()) else {
            return lapic.acknowledge();
        };
        // The signal was for whatever was most urgent; there may be another request behind it.
        lapic.look_again();
        Some(vector)
    }

    /// Sends `message` to all enabled local APICs that `is_target` names, or to the one with the
    /// lowest priority among them.
    fn deliver_to(&self, message: &Message, is_target: impl Fn(&Lapic) -> bool) -> bool {
        let lapics = self.lapics();
        let targets = lapics.iter().filter(|lapic| lapic.is_enabled() && is_target(lapic));
        if message.delivery != Delivery::LowestPriority {
            return targets.fold(false, |taken, lapic| lapic.receive(message) | taken);
        }
        let targets: Vec<_> = targets.filter(|lapic| lapic.is_software_enabled()).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % targets.len().max(1);
        let (before, after) = targets.split_at(turn);
        let lowest = after.iter().chain(before).min_by_key(|lapic| lapic.ppr());
        lowest.is_some_and(|lapic| lapic.receive(message))
    }

    fn external_pending_for(&self, lapic: &Lapic) -> bool {
        self.chips.external_pending() && lapic.accepts_external()
    }

    fn lapics(&self) -> RwLockReadGuard<'_, Vec<Arc<Lapic>>> {
        self.lapics.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Irqchip {
    type Target = Chips;

    fn deref(&self) -> &Chips {
        &self.chips
    }
}

impl Processors for Irqchip {
    fn deliver(&self, message: &Message) -> bool {
        let lapics = self.lapics();
        if !message.logical
            && let Ok(index) = lapics.binary_search_by_key(&message.destination, |lapic| lapic.id())
            && lapics[index].is_addressed(message)
            // In xAPIC mode this id is everyone.
            && message.destination != 0xFF
        {
            return lapics[index].receive(message);
        }
        drop(lapics);
        self.deliver_to(message, |lapic| lapic.is_addressed(message))
    }

    fn external(&self, rose: bool) {
        self.lapics().iter().for_each(|lapic| lapic.lint0(rose));
    }
}

#[cfg(test)]
mod tests;

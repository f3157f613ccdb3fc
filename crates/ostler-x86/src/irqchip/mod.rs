//! The interrupt controllers and the timer of a PC, as `KVM_CREATE_IRQCHIP` and `KVM_CREATE_PIT2` give them.
//!
//! * [`pic`]: the two 8259A, whose output is LINT0 of all local APICs and pin 0 of the IOAPIC;
//! * [`ioapic`]: 24 pins; [`lapic`]: one per vCPU; [`message`]: what they send each other;
//! * [`pit`]: the 8254, whose counter 0 drives GSI 0, which is the PIC's input 0 and the IOAPIC's pin 2;
//! * [`timer`]: the host thread that lets PIT and local APIC timers expire;
//! * [`eventfd`]: interrupts that come by eventfd.
//!
//! Lock order: PIT, PICs, IOAPIC, the list of local APICs; a timer's lock, then the deadlines'.
//! Local APICs take interrupts without a lock, so that all of this may be held while delivering.

mod eventfd;
mod ioapic;
mod lapic;
mod message;
mod pic;
mod pit;
mod timer;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};

use ostler_engine::regs::IrqchipState;
use ostler_engine::{AccelError, Msi};

use crate::clock::GuestClock;
use crate::signals::Signals;
use eventfd::EventFds;
use ioapic::Ioapic;
use message::{Delivery, Message};
use pic::PicPair;
use pit::Pit;
use timer::{Deadlines, Slot, Timed, TimerThread};

pub use ioapic::IOAPIC_BASE;
pub use lapic::{APIC_BASE_MSR, Lapic, TSC_DEADLINE_MSR};

/// The ISA timer's GSI, and the IOAPIC pin it has on every PC (ACPI tells by an override).
const TIMER_GSI: u32 = 0;
const TIMER_PIN: u32 = 2;
/// Input 2 of the PIC is the cascade, and pin 2 of the IOAPIC the timer's.
const CASCADE_GSI: u32 = 2;

/// The interrupt controllers of one VM.
#[derive(Debug)]
pub struct Irqchip {
    clock: Arc<GuestClock>,
    this: Weak<Self>,
    deadlines: Arc<Deadlines>,
    pit_slot: Slot,
    pit: Mutex<Pit>,
    pics: Mutex<PicPair>,
    /// The PIC's output, readable without its lock.
    intr: AtomicBool,
    ioapic: Mutex<Ioapic>,
    storm: Arc<Storm>,
    /// Sorted by id.
    lapics: RwLock<Vec<Arc<Lapic>>>,
    eventfds: EventFds,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: AtomicUsize,
    _thread: TimerThread,
}

impl Irqchip {
    /// Fails when the host has no thread left for the timers.
    pub fn new(clock: Arc<GuestClock>) -> Result<Arc<Self>, AccelError> {
        let deadlines = Arc::new(Deadlines::new(Arc::clone(&clock)));
        let thread = TimerThread::start(Arc::clone(&deadlines))?;
        Ok(Arc::new_cyclic(|this: &Weak<Self>| {
            let pit: Weak<Self> = Weak::clone(this);
            let storm = Arc::new_cyclic(|storm: &Weak<Storm>| Storm {
                chip: Weak::clone(this),
                slot: deadlines.add(storm.clone()),
            });
            Self {
                clock,
                this: Weak::clone(this),
                pit_slot: deadlines.add(pit),
                deadlines,
                pit: Mutex::new(Pit::new()),
                pics: Mutex::new(PicPair::new()),
                intr: AtomicBool::new(false),
                ioapic: Mutex::new(Ioapic::new()),
                storm,
                lapics: RwLock::new(Vec::new()),
                eventfds: EventFds::default(),
                turn: AtomicUsize::new(0),
                _thread: thread,
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

    /// Sets the level of a global system interrupt: 0..16 at the PIC and the IOAPIC, 16..24 at the
    /// IOAPIC. GSI 0 is the IOAPIC's pin 2; GSI 2, which the cascade hides, and those past 23 do nothing.
    pub fn set_irq_line(&self, gsi: u32, level: bool) {
        if gsi == CASCADE_GSI {
            return;
        }
        if gsi < 16 {
            self.with_pics(|pics| pics.set_line(gsi as u8, level));
        }
        self.set_pin(if gsi == TIMER_GSI { TIMER_PIN } else { gsi }, level);
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
        let mut pics = lock(&self.pics);
        if !pics.output() {
            // Another vCPU, or a mask, was faster.
            drop(pics);
            return lapic.acknowledge();
        }
        lapic.external_taken();
        let vector = pics.acknowledge();
        // INTA makes the output fall, even when there is a further request.
        self.publish_intr(false);
        self.publish_intr(pics.output());
        // The signal was for whatever was most urgent; there may be another request behind it.
        lapic.look_again();
        Some(vector)
    }

    /// Has to be called after the VM's clock was set, stopped or started.
    pub fn clock_changed(&self) {
        self.deadlines.clock_changed();
    }

    /// Reads the I/O ports of PIC, ELCR, PIT and 0x61; false when `port` is none of them. Bytes
    /// past the chip's ports read as ones.
    pub fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        if Port::decode(port).is_none() {
            return false;
        }
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = Port::decode(port).map_or(0xFF, |port| self.read_port(port));
        }
        true
    }

    /// Writes them; false when `port` is none of them.
    pub fn io_write(&self, port: u16, data: &[u8]) -> bool {
        if Port::decode(port).is_none() {
            return false;
        }
        for (port, &byte) in (port..=u16::MAX).zip(data) {
            if let Some(port) = Port::decode(port) {
                self.write_port(port, byte);
            }
        }
        true
    }

    /// Reads at `offset` of the page at [`IOAPIC_BASE`].
    pub fn ioapic_read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.ioapic).read(offset, data);
    }

    pub fn ioapic_write(&self, offset: u64, data: &[u8]) {
        if ioapic::is_end_of_interrupt(offset) {
            return self.end_of_interrupt(data.first().copied().unwrap_or(0));
        }
        lock(&self.ioapic).write(offset, data, &|message| self.deliver(message));
    }

    pub fn state(&self) -> IrqchipState {
        let (pit, speaker) = lock(&self.pit).state();
        IrqchipState { pics: lock(&self.pics).state(), ioapic: lock(&self.ioapic).state(), pit, speaker }
    }

    /// Takes over a saved state, or refuses one the chips cannot be in and changes nothing. The
    /// VM's clock has to be set before.
    pub fn set_state(&self, state: &IrqchipState) -> Result<(), AccelError> {
        state.pics.iter().try_for_each(pic::check)?;
        ioapic::check(&state.ioapic)?;
        state.pit.iter().try_for_each(pit::check)?;
        lock(&self.ioapic).set_state(&state.ioapic);
        // It may have been saved amid a pause.
        self.pause_storm(true);
        self.restore_pics(state);
        let mut pit = lock(&self.pit);
        pit.set_state(&state.pit, state.speaker, self.clock.now_ns());
        self.arm_pit(&pit);
        Ok(())
    }

    /// Without an edge of the output: what it caused is in the other chips' states.
    fn restore_pics(&self, state: &IrqchipState) {
        let mut pics = lock(&self.pics);
        pics.set_state(&state.pics);
        self.intr.store(pics.output(), Ordering::SeqCst);
        if pics.output() {
            self.lapics().iter().for_each(|lapic| lapic.lint0(false));
        }
    }

    /// Sends `message` to the local APICs it addresses; false when none takes it.
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

    /// A local APIC ends a level-triggered interrupt.
    fn end_of_interrupt(&self, vector: u8) {
        let pins = lock(&self.ioapic).level_pins(vector);
        self.resample(pins);
        let waits = lock(&self.ioapic).end_of_interrupt(vector, &|message| self.deliver(message));
        self.pause_storm(waits);
    }

    /// Has the IOAPIC send later what `waits`.
    fn pause_storm(&self, waits: bool) {
        if waits {
            self.deadlines.set(self.storm.slot, Some(self.clock.now_ns() + ioapic::STORM_PAUSE_NS));
        }
    }

    /// Whether the PIC has a request for whoever takes it.
    fn external_pending(&self) -> bool {
        self.intr.load(Ordering::SeqCst)
    }

    fn external_pending_for(&self, lapic: &Lapic) -> bool {
        self.external_pending() && lapic.accepts_external()
    }

    fn set_pin(&self, pin: u32, level: bool) {
        lock(&self.ioapic).set_pin(pin, level, &|message| self.deliver(message));
    }

    fn with_pics<R>(&self, act: impl FnOnce(&mut PicPair) -> R) -> R {
        let mut pics = lock(&self.pics);
        let result = act(&mut pics);
        self.publish_intr(pics.output());
        result
    }

    /// Passes the PIC's output on; with its lock held, so that changes arrive in order.
    fn publish_intr(&self, level: bool) {
        let before = self.intr.swap(level, Ordering::SeqCst);
        if level {
            self.lapics().iter().for_each(|lapic| lapic.lint0(!before));
        }
        if level != before {
            self.set_pin(0, level);
        }
    }

    fn lapics(&self) -> RwLockReadGuard<'_, Vec<Arc<Lapic>>> {
        self.lapics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn arm_pit(&self, pit: &Pit) {
        self.deadlines.set(self.pit_slot, pit.rise_ns());
    }

    fn read_port(&self, port: Port) -> u8 {
        match port {
            Port::Pic { chip, offset } => self.with_pics(|pics| pics.read(chip, offset)),
            Port::Elcr(chip) => lock(&self.pics).read_elcr(chip),
            Port::Pit(offset) => lock(&self.pit).read(offset, self.clock.now_ns()),
            Port::Speaker => lock(&self.pit).read_speaker(self.clock.now_ns()),
        }
    }

    fn write_port(&self, port: Port, value: u8) {
        match port {
            Port::Pic { chip, offset } => self.with_pics(|pics| pics.write(chip, offset, value)),
            Port::Elcr(chip) => self.with_pics(|pics| pics.write_elcr(chip, value)),
            Port::Pit(offset) => {
                let mut pit = lock(&self.pit);
                pit.write(offset, value, self.clock.now_ns());
                self.arm_pit(&pit);
            }
            Port::Speaker => lock(&self.pit).write_speaker(value, self.clock.now_ns()),
        }
    }
}

impl Timed for Irqchip {
    /// Counter 0's output rises. The line falls at once: one that stayed high, as the chip's does,
    /// would say nothing more to an edge-triggered input.
    fn expire(&self, now_ns: u64) {
        let mut pit = lock(&self.pit);
        if !pit.take_rise(now_ns) {
            return;
        }
        self.arm_pit(&pit);
        self.set_irq_line(TIMER_GSI, true);
        self.set_irq_line(TIMER_GSI, false);
    }
}

/// The end of the pause after too many interrupts of one pin.
#[derive(Debug)]
struct Storm {
    chip: Weak<Irqchip>,
    slot: Slot,
}

impl Timed for Storm {
    fn expire(&self, _now_ns: u64) {
        if let Some(chip) = self.chip.upgrade() {
            lock(&chip.ioapic).send_all_asserted(&|message| chip.deliver(message));
        }
    }
}

/// A port, as a register of one of the chips.
#[derive(Clone, Copy, Debug)]
enum Port {
    Pic { chip: usize, offset: u16 },
    Elcr(usize),
    Pit(u16),
    Speaker,
}

impl Port {
    fn decode(port: u16) -> Option<Self> {
        match port {
            0x20 | 0x21 => Some(Self::Pic { chip: 0, offset: port - 0x20 }),
            0xA0 | 0xA1 => Some(Self::Pic { chip: 1, offset: port - 0xA0 }),
            0x40..=0x43 => Some(Self::Pit(port - 0x40)),
            0x61 => Some(Self::Speaker),
            0x4D0 | 0x4D1 => Some(Self::Elcr(usize::from(port - 0x4D0))),
            _ => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

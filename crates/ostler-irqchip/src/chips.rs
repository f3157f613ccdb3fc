//! PIC, IOAPIC and PIT on one board, as `KVM_CREATE_IRQCHIP` and `KVM_CREATE_PIT2` wire them.
//!
//! The PIC's output is LINT0 of the local APICs and pin 0 of the IOAPIC; counter 0 of the PIT drives GSI 0, which is
//! the PIC's input 0 and the IOAPIC's pin 2.
//!
//! Lock order: PIT, PICs, IOAPIC, then whatever [`Processors`] take; a timer's lock, then the deadlines'.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ostler_engine::AccelError;
use ostler_engine::regs::{IoapicState, IrqchipState};

use crate::eventfd::EventFds;
use crate::ioapic::{self, Ioapic};
use crate::message::Message;
use crate::pic::{self, PicPair};
use crate::pit::{self, Pit};
use crate::timer::{Deadlines, Slot, Timed, Timers};

/// The ISA timer's GSI, and the IOAPIC pin it has on every PC (ACPI tells by an override).
pub(crate) const TIMER_GSI: u32 = 0;
pub(crate) const TIMER_PIN: u32 = 2;
/// Input 2 of the PIC is the cascade, and pin 2 of the IOAPIC the timer's.
const CASCADE_GSI: u32 = 2;

/// Where the chips' outputs lead. All of it is called with locks of the chips held: it must not call back.
pub trait Processors: Send + Sync + Debug {
    /// Sends `message` to the local APICs it addresses; false when none takes it.
    fn deliver(&self, message: &Message) -> bool;
    /// The PIC's output, which is LINT0, is high, and `rose` when it was not before.
    fn external(&self, rose: bool);
    /// The IOAPIC's redirection table has changed; before anything is sent by the new one.
    fn routed(&self, _ioapic: &IoapicState) {}
}

/// The chips of one VM.
#[derive(Debug)]
pub struct Chips {
    pub(crate) this: Weak<Self>,
    processors: Weak<dyn Processors>,
    timers: Timers,
    pit_slot: Slot,
    pit: Mutex<Pit>,
    pics: Mutex<PicPair>,
    /// The PIC's output, readable without its lock.
    intr: AtomicBool,
    ioapic: Mutex<Ioapic>,
    storm: Arc<Storm>,
    pub(crate) eventfds: EventFds,
}

impl Chips {
    pub fn new(timers: Timers, processors: Weak<dyn Processors>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let pit: Weak<Self> = Weak::clone(this);
            let storm = Arc::new_cyclic(|storm: &Weak<Storm>| Storm {
                chips: Weak::clone(this),
                slot: timers.deadlines.add(storm.clone()),
            });
            Self {
                this: Weak::clone(this),
                processors,
                pit_slot: timers.deadlines.add(pit),
                timers,
                pit: Mutex::new(Pit::new()),
                pics: Mutex::new(PicPair::new()),
                intr: AtomicBool::new(false),
                ioapic: Mutex::new(Ioapic::new()),
                storm,
                eventfds: EventFds::default(),
            }
        })
    }

    pub fn deadlines(&self) -> &Arc<Deadlines> {
        &self.timers.deadlines
    }

    fn now_ns(&self) -> u64 {
        self.timers.deadlines.clock().now_ns()
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

    /// Whether the PIC has a request for whoever takes it.
    pub fn external_pending(&self) -> bool {
        self.intr.load(Ordering::SeqCst)
    }

    /// INTA: the vector of the PIC's most urgent request. `None` when another processor, or a mask, was faster;
    /// otherwise `taken` is called before the next request shows.
    pub fn acknowledge(&self, taken: impl FnOnce()) -> Option<u8> {
        let mut pics = lock(&self.pics);
        if !pics.output() {
            return None;
        }
        taken();
        let vector = pics.acknowledge();
        // INTA makes the output fall, even when there is a further request.
        self.publish_intr(false);
        self.publish_intr(pics.output());
        Some(vector)
    }

    /// Has to be called after the VM's clock was set, stopped or started.
    pub fn clock_changed(&self) {
        self.timers.deadlines.clock_changed();
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

    /// Reads at `offset` of the page at [`crate::IOAPIC_BASE`].
    pub fn ioapic_read(&self, offset: u64, data: &mut [u8]) {
        lock(&self.ioapic).read(offset, data);
    }

    pub fn ioapic_write(&self, offset: u64, data: &[u8]) {
        if ioapic::is_end_of_interrupt(offset) {
            return self.end_of_interrupt(data.first().copied().unwrap_or(0));
        }
        let mut ioapic = lock(&self.ioapic);
        if let Some(pin) = ioapic.write(offset, data) {
            self.tell(|processors| processors.routed(&ioapic.state()));
            ioapic.send_if_asserted(pin, &|message| self.deliver(message));
        }
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
        let mut ioapic = lock(&self.ioapic);
        ioapic.set_state(&state.ioapic);
        self.tell(|processors| processors.routed(&state.ioapic));
        drop(ioapic);
        // It may have been saved amid a pause.
        self.pause_storm(true);
        self.restore_pics(state);
        let mut pit = lock(&self.pit);
        pit.set_state(&state.pit, state.speaker, self.now_ns());
        self.arm_pit(&pit);
        Ok(())
    }

    /// A local APIC ends a level-triggered interrupt.
    pub fn end_of_interrupt(&self, vector: u8) {
        let pins = lock(&self.ioapic).level_pins(vector);
        self.resample(pins);
        let waits = lock(&self.ioapic).end_of_interrupt(vector, &|message| self.deliver(message));
        self.pause_storm(waits);
    }

    pub(crate) fn deliver(&self, message: &Message) -> bool {
        self.processors.upgrade().is_some_and(|processors| processors.deliver(message))
    }

    fn tell(&self, what: impl FnOnce(&dyn Processors)) {
        if let Some(processors) = self.processors.upgrade() {
            what(&*processors);
        }
    }

    /// Without an edge of the output: what it caused is in the other chips' states.
    fn restore_pics(&self, state: &IrqchipState) {
        let mut pics = lock(&self.pics);
        pics.set_state(&state.pics);
        self.intr.store(pics.output(), Ordering::SeqCst);
        if pics.output() {
            self.tell(|processors| processors.external(false));
        }
    }

    /// Has the IOAPIC send later what `waits`.
    fn pause_storm(&self, waits: bool) {
        if waits {
            self.timers.deadlines.set(self.storm.slot, Some(self.now_ns() + ioapic::STORM_PAUSE_NS));
        }
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
            self.tell(|processors| processors.external(!before));
        }
        if level != before {
            self.set_pin(0, level);
        }
    }

    fn arm_pit(&self, pit: &Pit) {
        self.timers.deadlines.set(self.pit_slot, pit.rise_ns());
    }

    fn read_port(&self, port: Port) -> u8 {
        match port {
            Port::Pic { chip, offset } => self.with_pics(|pics| pics.read(chip, offset)),
            Port::Elcr(chip) => lock(&self.pics).read_elcr(chip),
            Port::Pit(offset) => lock(&self.pit).read(offset, self.now_ns()),
            Port::Speaker => lock(&self.pit).read_speaker(self.now_ns()),
        }
    }

    fn write_port(&self, port: Port, value: u8) {
        match port {
            Port::Pic { chip, offset } => self.with_pics(|pics| pics.write(chip, offset, value)),
            Port::Elcr(chip) => self.with_pics(|pics| pics.write_elcr(chip, value)),
            Port::Pit(offset) => {
                let mut pit = lock(&self.pit);
                pit.write(offset, value, self.now_ns());
                self.arm_pit(&pit);
            }
            Port::Speaker => lock(&self.pit).write_speaker(value, self.now_ns()),
        }
    }
}

impl Timed for Chips {
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
    chips: Weak<Chips>,
    slot: Slot,
}

impl Timed for Storm {
    fn expire(&self, _now_ns: u64) {
        if let Some(chips) = self.chips.upgrade() {
            lock(&chips.ioapic).send_all_asserted(&|message| chips.deliver(message));
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

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestClock;
    use crate::message::Delivery;

    /// What the chips said, in order.
    #[derive(Debug, Default)]
    struct Log(Mutex<Vec<Said>>);

    #[derive(Clone, Debug, PartialEq)]
    enum Said {
        Delivered(Message),
        External(bool),
        Routed(Vec<(u32, u8)>),
    }

    impl Log {
        fn add(&self, said: Said) {
            lock(&self.0).push(said);
        }

        fn take(&self) -> Vec<Said> {
            std::mem::take(&mut lock(&self.0))
        }
    }

    impl Processors for Log {
        fn deliver(&self, message: &Message) -> bool {
            self.add(Said::Delivered(*message));
            true
        }

        fn external(&self, rose: bool) {
            self.add(Said::External(rose));
        }

        fn routed(&self, ioapic: &IoapicState) {
            let pins = ioapic::level_messages(ioapic).into_iter().map(|(pin, message)| (pin, message.vector));
            self.add(Said::Routed(pins.collect()));
        }
    }

    fn chips() -> (Arc<Chips>, Arc<Log>) {
        let log = Arc::new(Log::default());
        let processors: Weak<Log> = Arc::downgrade(&log);
        let timers = Timers::start(Arc::new(GuestClock::default())).expect("a thread");
        (Chips::new(timers, processors), log)
    }

    fn redirect(chips: &Chips, pin: u32, entry: u64) {
        for (register, half) in [(0x11 + 2 * pin, (entry >> 32) as u32), (0x10 + 2 * pin, entry as u32)] {
            chips.ioapic_write(0, &register.to_le_bytes());
            chips.ioapic_write(0x10, &half.to_le_bytes());
        }
    }

    fn level(vector: u8) -> Said {
        let destination = 0x105;
        Said::Delivered(Message { destination, logical: false, delivery: Delivery::Fixed, vector, level: true })
    }

    #[test]
    fn route_is_known_before_an_interrupt_takes_it() {
        let (chips, log) = chips();
        chips.set_irq_line(20, true);
        // Destination 0x105, level-triggered.
        redirect(&chips, 20, 5 << 56 | 1 << 49 | 1 << 15 | 0x31);
        let said = log.take();
        assert_eq!(said[said.len() - 2..], [Said::Routed(vec![(20, 0x31)]), level(0x31)]);
        chips.set_irq_line(20, false);
        chips.end_of_interrupt(0x31);
        assert_eq!(log.take(), []);
    }

    #[test]
    fn line_still_asserted_at_the_end_of_its_interrupt_interrupts_again() {
        let (chips, log) = chips();
        redirect(&chips, 20, 5 << 56 | 1 << 49 | 1 << 15 | 0x31);
        chips.set_irq_line(20, true);
        chips.end_of_interrupt(0x30);
        log.take();
        chips.end_of_interrupt(0x31);
        assert_eq!(log.take(), [level(0x31)]);
    }

    #[test]
    fn masked_pin_keeps_its_route_and_an_edge_has_none() {
        let (chips, log) = chips();
        redirect(&chips, 7, 1 << 16 | 1 << 15 | 0x31);
        redirect(&chips, 8, 0x32);
        assert_eq!(log.take().pop(), Some(Said::Routed(vec![(7, 0x31)])));
    }

    #[test]
    fn request_of_the_pic_is_told_and_acknowledged_once() {
        let (chips, log) = chips();
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
            chips.io_write(port, &[value]);
        }
        chips.set_irq_line(4, true);
        assert!(log.take().contains(&Said::External(true)));
        assert!(chips.external_pending());
        assert_eq!(chips.acknowledge(|| {}), Some(0x24));
        assert!(!chips.external_pending());
        assert_eq!(chips.acknowledge(|| panic!("nothing is taken")), None);
    }
}

//! The 82093AA I/O APIC, with the EOI register of its successors (version 0x20).
//!
//! A pin's level is "asserted or not": the polarity bits are kept but have no effect, as the
//! board's lines have no voltages. Not modelled: the APIC bus (arbitration id), delivery status
//! (messages arrive at once), and SMI delivery.

use ostler_engine::AccelError;
use ostler_engine::regs::IoapicState;

use crate::message::{Delivery, Message};

/// Where the chip's 4 KiB page lies.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;

const PINS: u32 = 24;
const VERSION: u32 = 0x20 | (PINS - 1) << 16;

mod offset {
    pub const SELECT: u64 = 0x00;
    pub const WINDOW: u64 = 0x10;
    pub const EOI: u64 = 0x40;
}

/// Whether a write at `offset` of the page ends the interrupts of a vector.
pub fn is_end_of_interrupt(offset: u64) -> bool {
    offset & 0xFF == offset::EOI
}

/// Bits of a redirection entry.
mod entry {
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// Vector, delivery mode, destination mode, polarity, trigger mode and mask. Delivery status
    /// and remote IRR are the chip's.
    pub const LOW_WRITABLE: u64 = 0x1_AFFF;
    /// The destination, and its bits 8..15 of `KVM_FEATURE_MSI_EXT_DEST_ID` below.
    pub const HIGH_WRITABLE: u64 = 0xFFFE_0000 << 32;
}

/// Sends a message to the local APICs; false when none accepted it.
pub type Deliver<'a> = &'a dyn Fn(&Message) -> bool;

/// After so many interrupts of one pin whose line did not fall in between, the next one waits.
///
/// A chip's interrupt takes a moment to come again, in which the processor runs some code. Here it
/// comes at once, and a driver whose handler leaves its line asserted (Linux's 8139cp, in a race)
/// would never get any further. KVM does the same, by the same numbers.
const STORM: u32 = 10_000;
/// How long it waits.
pub const STORM_PAUSE_NS: u64 = 10_000_000;

#[derive(Debug)]
pub struct Ioapic {
    state: IoapicState,
    /// Interrupts of each pin since its line was last seen not to be asserted at their end.
    successive: [u32; PINS as usize],
}

impl Ioapic {
    pub fn new() -> Self {
        let redirtbl = [entry::MASKED; PINS as usize];
        Self {
            state: IoapicState { base_address: IOAPIC_BASE, redirtbl, ..IoapicState::default() },
            successive: [0; PINS as usize],
        }
    }

    /// Sets the level of `pin`; pins the chip does not have are ignored.
    pub fn set_pin(&mut self, pin: u32, level: bool, deliver: Deliver<'_>) {
        if pin >= PINS {
            return;
        }
        let before = self.state.irr;
        if level {
            self.state.irr |= 1 << pin;
        } else {
            self.state.irr &= !(1 << pin);
        }
        let rose = self.state.irr & !before != 0;
        if level && (rose || self.is_level(pin as usize)) {
            self.send(pin as usize, deliver);
        }
    }

    /// The level-triggered pins that send `vector`, one bit each.
    pub fn level_pins(&self, vector: u8) -> u32 {
        let sends = |pin: &usize| self.state.redirtbl[*pin] as u8 == vector && self.is_level(*pin);
        (0..self.state.redirtbl.len()).filter(sends).fold(0, |pins, pin| pins | 1 << pin)
    }

    /// A local APIC broadcasts the end of a level-triggered interrupt. True when one that is due has
    /// to wait, for `send_all_asserted` after [`STORM_PAUSE_NS`].
    #[must_use]
    pub fn end_of_interrupt(&mut self, vector: u8, deliver: Deliver<'_>) -> bool {
        let mut waits = false;
        for pin in 0..self.state.redirtbl.len() {
            if self.state.redirtbl[pin] as u8 == vector && self.is_level(pin) {
                self.state.redirtbl[pin] &= !entry::REMOTE_IRR;
                if self.is_storm(pin) {
                    waits = true;
                } else {
                    self.send_if_asserted(pin, deliver);
                }
            }
        }
        waits
    }

    fn is_storm(&mut self, pin: usize) -> bool {
        let asserted = self.state.irr & 1 << pin != 0;
        let count = if asserted { self.successive[pin] + 1 } else { 0 };
        self.successive[pin] = count % STORM;
        count == STORM
    }

    /// Sends the interrupts of level-triggered pins that have waited.
    pub fn send_all_asserted(&mut self, deliver: Deliver<'_>) {
        for pin in 0..self.state.redirtbl.len() {
            self.send_if_asserted(pin, deliver);
        }
    }

    /// Reads the register at `offset` of the page; what lies between registers reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & 0xFF {
            offset::SELECT => self.state.ioregsel,
            offset::WINDOW => self.read_selected(),
            _ => 0,
        };
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = value;
        }
    }

    /// All but the ends of interrupts: those concern more than this chip. The pin whose redirection entry was
    /// written, which has to be sent if it is asserted.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        let mut bytes = [0; 4];
        for (byte, &written) in bytes.iter_mut().zip(data) {
            *byte = written;
        }
        let value = u32::from_le_bytes(bytes);
        match offset & 0xFF {
            offset::SELECT => self.state.ioregsel = value & 0xFF,
            offset::WINDOW => return self.write_selected(value),
            _ => {}
        }
        None
    }

    pub fn state(&self) -> IoapicState {
        self.state
    }

    /// Takes a state over as it is. Nothing is delivered: what was, is in the local APICs' states.
    pub fn set_state(&mut self, state: &IoapicState) {
        self.state = *state;
    }

    fn read_selected(&self) -> u32 {
        match self.state.ioregsel {
            // The arbitration id (register 2) follows the id.
            0 | 2 => self.state.id << 24,
            1 => VERSION,
            select => self.entry(select).map_or(0, |(pin, shift)| (self.state.redirtbl[pin] >> shift) as u32),
        }
    }

    fn write_selected(&mut self, value: u32) -> Option<usize> {
        let select = self.state.ioregsel;
        if select == 0 {
            self.state.id = value >> 24 & 0xF;
            return None;
        }
        let (pin, shift) = self.entry(select)?;
        self.write_entry(pin, u64::from(value) << shift, shift);
        Some(pin)
    }

    /// The redirection entry that indirect register `select` is a half of, and where the half starts.
    fn entry(&self, select: u32) -> Option<(usize, u32)> {
        let half = select.checked_sub(0x10).filter(|half| half / 2 < PINS)?;
        Some(((half / 2) as usize, half % 2 * 32))
    }

    fn write_entry(&mut self, pin: usize, value: u64, shift: u32) {
        let writable = if shift == 0 { entry::LOW_WRITABLE } else { entry::HIGH_WRITABLE };
        let entry = &mut self.state.redirtbl[pin];
        *entry = *entry & !writable | value & writable;
        if *entry & entry::LEVEL == 0 {
            // Before there was an EOI register, this was how to end an interrupt by hand.
            *entry &= !entry::REMOTE_IRR;
        }
    }

    fn is_level(&self, pin: usize) -> bool {
        self.state.redirtbl[pin] & entry::LEVEL != 0
    }

    /// Sends a level-triggered pin's interrupt when its line is still asserted.
    pub fn send_if_asserted(&mut self, pin: usize, deliver: Deliver<'_>) {
        if self.is_level(pin) && self.state.irr & 1 << pin != 0 {
            self.send(pin, deliver);
        }
    }

    fn send(&mut self, pin: usize, deliver: Deliver<'_>) {
        let bits = self.state.redirtbl[pin];
        if bits & (entry::MASKED | entry::REMOTE_IRR) != 0 {
            return;
        }
        let message = decode(bits);
        if deliver(&message) && message.level {
            self.state.redirtbl[pin] |= entry::REMOTE_IRR;
        }
    }
}

fn decode(bits: u64) -> Message {
    let delivery = Delivery::decode((bits >> 8) as u32);
    Message {
        destination: (bits >> 56) as u32 | ((bits >> 49) as u32 & 0x7F) << 8,
        logical: bits & entry::LOGICAL != 0,
        delivery,
        vector: bits as u8,
        level: bits & entry::LEVEL != 0 && delivery.has_vector(),
    }
}

/// The pins whose interrupts are level-triggered, and the message of each: whoever ends one has to tell the chip.
/// Masked ones are among them, as their last interrupt may still be in service.
pub fn level_messages(state: &IoapicState) -> Vec<(u32, Message)> {
    let messages = (0..).zip(state.redirtbl.map(decode));
    messages.filter(|(_, message)| message.level).collect()
}

/// Refuses a state the chip cannot be in.
pub fn check(state: &IoapicState) -> Result<(), AccelError> {
    let bad = |what, value| Err(AccelError::BadState { what, value });
    if state.base_address != IOAPIC_BASE {
        return bad("IOAPIC base_address", state.base_address);
    }
    if state.ioregsel > 0xFF {
        return bad("IOAPIC ioregsel", u64::from(state.ioregsel));
    }
    if state.id > 0xF {
        return bad("IOAPIC id", u64::from(state.id));
    }
    if state.irr >> PINS != 0 {
        return bad("IOAPIC irr", u64::from(state.irr));
    }
    let known = entry::LOW_WRITABLE | entry::HIGH_WRITABLE | entry::REMOTE_IRR;
    match state.redirtbl.iter().find(|&&bits| bits & !known != 0) {
        Some(&bits) => bad("IOAPIC redirection entry", bits),
        None => Ok(()),
    }
}

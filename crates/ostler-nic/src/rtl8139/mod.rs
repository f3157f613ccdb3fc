//! Realtek's RTL8139C+, and the plain RTL8139 (RTL8139C(L)+ data sheet).
//!
//! Both ways to drive it: four transmit descriptors and a ring buffer, which the plain chip has alone,
//! and the descriptor rings of the C+ with checksums, TCP segmentation and VLAN tags done for the
//! driver.
//!
//! Not modelled: frame check sequences (they are zeros), the high-priority transmit ring, the timer,
//! early receive and transmit, loopback, wake-up, power management, statistics (their dump is zeros),
//! frames over several receive descriptors (those that do not fit into one are dropped).

mod buffer;
mod registers;
mod rings;

use std::time::Instant;

use ostler_memory::GuestMap;
use ostler_virtio::net::{Frame, Mac};

use crate::chip::{BadState, Chip, Delivery, Saved, Work, part};
use crate::eeprom::{self, Eeprom};
use crate::packet;
use registers as reg;

const VENDOR: u16 = 0x10ec;
const DEVICE: u16 = 0x8139;
const TALLY_BYTES: usize = 64;
const BMCR_RESTART: u16 = 1 << 9;
const BMCR_RESET: u16 = 1 << 15;

/// What of a frame that was taken its driver gets back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InFlight {
    /// The next of the four descriptors.
    Buffer,
    /// So many of the ring.
    Ring(u32),
}

#[derive(Debug)]
pub struct Rtl8139 {
    mac: Mac,
    plus: bool,
    registers: Vec<u8>,
    eeprom: Eeprom,
    link: bool,
    /// The next of the four transmit descriptors, of the transmit ring and of the receive ring.
    next: [u32; 3],
    /// The driver has said that there is something in the transmit ring.
    polled: bool,
    in_flight: Option<InFlight>,
    /// The driver has asked for the statistics at this address.
    dump: Option<u64>,
}

const BUFFER: usize = 0;
const SEND: usize = 1;
const RECEIVE: usize = 2;

impl Rtl8139 {
    /// `plus`: it is the C+.
    pub fn new(mac: Mac, link: bool, plus: bool) -> Self {
        let mut chip = Self {
            mac,
            plus,
            registers: Vec::new(),
            eeprom: Eeprom::new(eeprom_words(mac)),
            link,
            next: [0; 3],
            polled: false,
            in_flight: None,
            dump: None,
        };
        chip.reset();
        chip
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.registers[at], self.registers[at + 1]])
    }

    fn set_word(&mut self, at: usize, value: u16) {
        self.registers[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn long(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    fn set_long(&mut self, at: usize, value: u32) {
        self.registers[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    fn address(&self, at: usize) -> u64 {
        u64::from(self.long(at)) | u64::from(self.long(at + 4)) << 32
    }

    fn commanded(&self, bit: u8) -> bool {
        self.registers[reg::CR] & bit != 0
    }

    /// Whether the driver uses the rings of the C+, to send or to receive.
    fn has_rings(&self, direction: u16) -> bool {
        self.plus && self.word(reg::CPCR) & direction != 0
    }

    fn cause(&mut self, causes: u16) {
        self.set_word(reg::ISR, self.word(reg::ISR) | causes);
    }

    /// What CR's reset bit does: addresses and the transceiver stay.
    fn reset_registers(&mut self) {
        for (offset, byte) in self.registers.iter_mut().enumerate() {
            let kept = offset < reg::TSD || (reg::EECR..0x60).contains(&offset) || (0x62..0x80).contains(&offset);
            if !kept {
                *byte = 0;
            }
        }
        for number in 0..4 {
            self.set_long(reg::TSD + 4 * number, reg::TSD_OWN);
        }
        self.set_word(reg::CAPR, 0xfff0);
        self.set_long(reg::TCR, if self.plus { reg::TCR_PLUS } else { reg::TCR_PLAIN });
        (self.next, self.polled, self.in_flight, self.dump) = ([0; 3], false, None, None);
    }

    fn read_byte(&self, at: usize) -> u8 {
        let stored = self.registers[at];
        match at {
            reg::CR if self.buffer_is_empty() => stored | reg::CR_BUFFER_EMPTY,
            reg::EECR => stored & !reg::EECR_DATA_OUT | u8::from(self.eeprom.output()),
            reg::MSR if !self.link => stored | reg::MSR_LINK_DOWN,
            0x75 if self.link => stored | reg::CSCR_LINK,
            reg::TSAD_ALL => self.all_status()[0],
            0x61 => self.all_status()[1],
            reg::BMSR | 0x65 => (self.bmsr() >> (8 * (at - reg::BMSR))) as u8,
            _ => stored,
        }
    }

    fn bmsr(&self) -> u16 {
        self.word(reg::BMSR) | if self.link { reg::BMSR_UP } else { 0 }
    }

    /// TSAD: the OWN bits of the four transmit descriptors, aborts, underruns, OK bits.
    fn all_status(&self) -> [u8; 2] {
        let bits = |bit: u32| (0..4).filter(|n| self.long(reg::TSD + 4 * n) & bit != 0).fold(0, |all, n| all | 1 << n);
        [bits(reg::TSD_OWN), bits(reg::TSD_OK) << 4]
    }

    fn write_byte(&mut self, at: usize, value: u8) {
        match at {
            reg::ISR => {
                self.registers[at] &= !value;
                // 8139too leaves its poll with frames in the buffer, whose interrupt it has cleared.
                if self.has_frames_in_buffer() {
                    self.cause(reg::ISR_RECEIVED);
                }
            }
            0x3f => self.registers[at] &= !value,
            reg::CR => self.command(value),
            _ => {
                let mask = reg::writable(at);
                self.registers[at] = self.registers[at] & !mask | value & mask;
            }
        }
    }

    fn command(&mut self, value: u8) {
        if value & reg::CR_RESET != 0 {
            self.reset_registers();
            return;
        }
        if value & reg::CR_TRANSMIT == 0 {
            (self.next[BUFFER], self.next[SEND], self.in_flight) = (0, 0, None);
        }
        if value & reg::CR_RECEIVE == 0 {
            self.next[RECEIVE] = 0;
        }
        let mask = reg::writable(reg::CR);
        self.registers[reg::CR] = value & mask;
    }

    fn has_frames_in_buffer(&self) -> bool {
        self.commanded(reg::CR_RECEIVE) && !self.has_rings(reg::CPCR_RECEIVE) && !self.buffer_is_empty()
    }

    /// What a store that has touched `bytes` begins.
    fn stored(&mut self, bytes: std::ops::Range<usize>) -> Work {
        let touched = |at: usize| bytes.contains(&at);
        if touched(reg::EECR) {
            let pins = self.registers[reg::EECR];
            let pin = |bit| pins & bit != 0;
            self.eeprom.drive(pin(reg::EECR_SELECT), pin(reg::EECR_CLOCK), pin(reg::EECR_DATA_IN));
        }
        if touched(reg::BMCR + 1) {
            let passing = BMCR_RESTART | BMCR_RESET;
            self.set_word(reg::BMCR, self.word(reg::BMCR) & !passing);
        }
        if touched(reg::DTCCR) {
            // Without its command, the driver has given up waiting for one before.
            self.dump = self.wanted_dump();
            if self.dump.is_some() {
                return Work::Anything;
            }
        }
        if touched(reg::CR) || touched(reg::CPCR) || touched(reg::RCR) {
            return Work::Anything;
        }
        if bytes.start >= reg::TSD && bytes.end <= reg::TSAD {
            return Work::Transmit;
        }
        // A driver that has made room in its ring says so by nothing but its interrupt mask.
        let room = touched(reg::CAPR) || touched(reg::ISR) || touched(reg::IMR);
        if room { Work::Receive } else { Work::Nothing }
    }

    /// Where the driver wants the statistics, as long as the command stands.
    fn wanted_dump(&self) -> Option<u64> {
        let wanted = self.has_rings(reg::CPCR_TRANSMIT) && self.long(reg::DTCCR) & reg::DTCCR_COMMAND != 0;
        wanted.then(|| self.address(reg::DTCCR) & !63)
    }

    fn accepts(&self, frame: &[u8]) -> bool {
        let Some(destination) = frame.first_chunk::<6>() else { return false };
        let mode = self.long(reg::RCR);
        if mode & reg::RCR_ALL != 0 {
            return true;
        }
        if *destination == [0xff; 6] {
            return mode & reg::RCR_BROADCAST != 0;
        }
        if destination[0] & 1 != 0 {
            let bit = packet::crc(destination) >> 26;
            let table = self.registers[reg::MAR + (bit / 8) as usize];
            return mode & reg::RCR_MULTICAST != 0 && table >> (bit % 8) & 1 != 0;
        }
        mode & reg::RCR_OWN != 0 && destination[..] == self.registers[reg::IDR..reg::IDR + 6]
    }
}

fn eeprom_words(mac: Mac) -> [u16; eeprom::WORDS] {
    let mut words = [0; eeprom::WORDS];
    // The first word says that the rest means something; then come the identities.
    words[..5].copy_from_slice(&[0x8129, VENDOR, DEVICE, VENDOR, DEVICE]);
    for (word, pair) in words[7..].iter_mut().zip(mac.chunks_exact(2)) {
        *word = u16::from_le_bytes([pair[0], pair[1]]);
    }
    words
}

impl Chip for Rtl8139 {
    fn read(&mut self, _bar: u8, offset: u64, size: usize) -> u64 {
        let mut bytes = [0; 8];
        for (at, byte) in (offset as usize..reg::BYTES).zip(&mut bytes[..size]) {
            *byte = self.read_byte(at);
            if at == reg::CSCR + 1 {
                self.registers[at] &= !reg::CSCR_CHANGED;
            }
        }
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, _bar: u8, offset: u64, size: usize, value: u64) -> Work {
        let start = offset as usize;
        let end = reg::BYTES.min(start + size);
        if (start..end).contains(&reg::TPPOLL) {
            let poll = value >> (8 * (reg::TPPOLL - start)) & u64::from(reg::TPPOLL_NORMAL);
            self.polled |= poll != 0;
            return Work::Transmit;
        }
        for (at, byte) in (start..end).zip(value.to_le_bytes()) {
            self.write_byte(at, byte);
        }
        self.stored(start..end)
    }

    fn take_frame(&mut self, map: &GuestMap, frame: &mut Frame) -> bool {
        if let Some(gpa) = self.dump.take() {
            crate::dma::write(map, gpa, &[0; TALLY_BYTES]);
            // Only now may the driver free the buffer.
            self.set_long(reg::DTCCR, self.long(reg::DTCCR) & !reg::DTCCR_COMMAND);
        }
        if !self.commanded(reg::CR_TRANSMIT) || self.in_flight.is_some() {
            false
        } else if self.has_rings(reg::CPCR_TRANSMIT) {
            self.take_from_ring(map, frame)
        } else {
            self.take_from_buffer(map, frame)
        }
    }

    fn frame_sent(&mut self, map: &GuestMap) {
        match self.in_flight.take() {
            Some(InFlight::Buffer) => self.give_back_buffer(),
            Some(InFlight::Ring(count)) => self.give_back_ring(map, count),
            None => return,
        }
        self.cause(reg::ISR_SENT);
    }

    fn has_room(&self, map: &GuestMap) -> bool {
        self.commanded(reg::CR_RECEIVE)
            && if self.has_rings(reg::CPCR_RECEIVE) { self.ring_has_room(map) } else { self.buffer_room() > 0 }
    }

    fn deliver(&mut self, map: &GuestMap, frame: &[u8]) -> Delivery {
        if !self.commanded(reg::CR_RECEIVE) {
            return Delivery::NoRoom;
        }
        if !self.accepts(frame) {
            return Delivery::Refused;
        }
        let delivery = if self.has_rings(reg::CPCR_RECEIVE) {
            self.deliver_to_ring(map, frame)
        } else {
            self.deliver_to_buffer(map, frame)
        };
        if delivery == Delivery::Taken {
            self.cause(reg::ISR_RECEIVED);
        }
        delivery
    }

    fn makes_room_silently(&self) -> bool {
        self.has_rings(reg::CPCR_RECEIVE) && self.commanded(reg::CR_RECEIVE)
    }

    fn interrupting(&mut self, _now: Instant) -> bool {
        self.word(reg::ISR) & self.word(reg::IMR) != 0
    }

    fn set_link(&mut self, up: bool) {
        if self.link != up {
            self.link = up;
            self.registers[reg::CSCR + 1] |= reg::CSCR_CHANGED;
            self.cause(reg::ISR_LINK);
        }
    }

    fn reset(&mut self) {
        self.registers = vec![0; reg::BYTES];
        self.registers[reg::IDR..reg::IDR + 6].copy_from_slice(&self.mac);
        // 100 Mb/s, full duplex, negotiated, with a partner that can do the same.
        let media = [(reg::BMCR, 0x3100), (reg::BMSR, 0x7809), (0x66, 0x05e1), (0x68, 0x45e1), (0x6a, 0x0001)];
        for (register, value) in media {
            self.set_word(register, value);
        }
        self.eeprom = Eeprom::new(self.eeprom.words);
        self.reset_registers();
    }

    fn save(&self) -> Saved {
        let flags = vec![self.polled.into()];
        vec![
            ("registers", self.registers.iter().map(|&byte| byte.into()).collect()),
            ("eeprom", self.eeprom.save()),
            ("next", self.next.to_vec()),
            ("polled", flags),
        ]
    }

    fn load(&mut self, saved: &[(String, Vec<u32>)]) -> Result<(), BadState> {
        let registers = part(saved, "registers", |len| len == reg::BYTES)?;
        let next = part(saved, "next", |len| len == 3)?;
        let polled = part(saved, "polled", |len| len == 1)?;
        let mut eeprom = self.eeprom.clone();
        eeprom.load(part(saved, "eeprom", |_| true)?).then_some(()).ok_or(BadState("eeprom"))?;
        if registers.iter().any(|&byte| byte > 0xff) {
            return Err(BadState("registers"));
        }
        if next[BUFFER] > 3 || next[SEND..].iter().any(|&index| index >= rings::MAX_DESCRIPTORS) || polled[0] > 1 {
            return Err(BadState("next"));
        }
        self.registers = Self::new(self.mac, self.link, self.plus).registers;
        for (at, (place, &byte)) in self.registers.iter_mut().zip(registers).enumerate() {
            *place = *place & !reg::kept(at) | byte as u8 & reg::kept(at);
        }
        (self.eeprom, self.polled) = (eeprom, polled[0] != 0);
        self.next.copy_from_slice(next);
        (self.in_flight, self.dump) = (None, self.wanted_dump());
        Ok(())
    }
}

#[cfg(test)]
mod tests;

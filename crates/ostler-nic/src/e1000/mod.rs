//! Intel's 82540EM, the "e1000" (8254x Family Software Developer's Manual).
//!
//! Legacy and extended descriptors, checksums and TCP segmentation done for the driver, VLAN tags
//! inserted and stripped, address, multicast and VLAN filters, throttled interrupts, the EEPROM by its
//! wires and by EERD, the transceiver by MDIC.
//!
//! Not modelled: frame check sequences (they are zeros), flow control, wake-up, loopback, split
//! headers, the delay timers (throttling stands for them), transmit priorities, segmentation of UDP
//! (such frames are dropped), statistics but for frames and bytes.

mod phy;
mod receive;
mod registers;
mod transmit;

use std::time::{Duration, Instant};

use ostler_memory::GuestMap;
use ostler_virtio::net::{Frame, Mac};

use crate::chip::{BadState, Chip, Delivery, Saved, Work, part};
use crate::eeprom::{self, Eeprom};
use phy::Phy;
use registers as reg;
use transmit::Contexts;

/// Memory-mapped registers, and the two ports that lead to them.
pub const MEMORY_BAR: u8 = 0;
pub const IO_BAR: u8 = 1;
const IO_ADDRESS: u64 = 0;
const IO_DATA: u64 = 4;
const DEVICE: u16 = 0x100e;
const VENDOR: u16 = 0x8086;
const SUBSYSTEM: u16 = 0x001e;
/// The sum of all words of a sound EEPROM.
const EEPROM_SUM: u16 = 0xbaba;
const ITR_UNIT: Duration = Duration::from_nanos(256);
const REGISTER_WORDS: usize = reg::END / 4;
/// The transceiver's address on its bus.
const PHY_ADDRESS: u32 = 1;

#[derive(Debug)]
pub struct E1000 {
    mac: Mac,
    registers: Vec<u32>,
    phy: Phy,
    eeprom: Eeprom,
    contexts: Contexts,
    io_address: u32,
    link: bool,
    /// TDH once the frame that was taken is sent.
    in_flight: Option<u32>,
    /// The pin is raised.
    raised: bool,
    /// Before then, the pin is not raised again.
    quiet_until: Option<Instant>,
}

impl E1000 {
    pub fn new(mac: Mac, link: bool) -> Self {
        let mut chip = Self {
            mac,
            registers: Vec::new(),
            phy: Phy::default(),
            eeprom: Eeprom::new(eeprom_words(mac)),
            contexts: Contexts::default(),
            io_address: 0,
            link,
            in_flight: None,
            raised: false,
            quiet_until: None,
        };
        chip.reset();
        chip
    }

    fn get(&self, register: usize) -> u32 {
        self.registers[register / 4]
    }

    fn set(&mut self, register: usize, value: u32) {
        self.registers[register / 4] = value;
    }

    fn has(&self, register: usize, bits: u32) -> bool {
        self.get(register) & bits != 0
    }

    fn cause(&mut self, causes: u32) {
        self.set(reg::ICR, self.get(reg::ICR) | causes);
    }

    /// Registers as CTRL.RST leaves them: all but the transceiver's and the EEPROM's.
    fn reset_registers(&mut self) {
        self.registers = vec![0; REGISTER_WORDS];
        self.set(reg::CTRL, reg::CTRL_DEFAULT);
        self.set(reg::PBA, reg::PBA_DEFAULT);
        let [a, b, c, d, e, f] = self.mac;
        self.set(reg::RA, u32::from_le_bytes([a, b, c, d]));
        self.set(reg::RA + 4, u32::from_le_bytes([e, f, 0, 0]) | reg::RAH_VALID);
        self.contexts = Contexts::default();
        (self.in_flight, self.quiet_until) = (None, None);
    }

    fn read_register(&mut self, register: usize) -> u32 {
        match register {
            reg::STATUS => reg::STATUS_DEFAULT | if self.link { reg::STATUS_LINK_UP } else { 0 },
            reg::EECD => self.eecd(),
            reg::ICR => {
                let causes = self.get(reg::ICR);
                self.set(reg::ICR, 0);
                causes
            }
            register if reg::STATISTICS.contains(&register) => {
                let count = self.get(register);
                self.set(register, 0);
                count
            }
            reg::ICS | reg::IMC => 0,
            register if register < reg::END => self.get(register),
            _ => 0,
        }
    }

    fn write_register(&mut self, register: usize, value: u32) -> Work {
        match register {
            reg::CTRL => return self.control(value),
            reg::EECD => {
                let pin = |bit| value & bit != 0;
                self.eeprom.drive(pin(reg::EECD_SELECT), pin(reg::EECD_CLOCK), pin(reg::EECD_DATA_IN));
                self.set(reg::EECD, value & reg::EECD_KEPT);
            }
            reg::EERD if value & reg::EERD_START != 0 => {
                let word = self.eeprom.word((value >> 8 & 0xff) as usize);
                self.set(reg::EERD, value & 0xff00 | reg::EERD_DONE | u32::from(word) << 16);
            }
            reg::MDIC => self.management(value),
            reg::ICR => self.set(reg::ICR, self.get(reg::ICR) & !value),
            reg::ICS => self.cause(value & reg::CAUSES),
            reg::IMS => self.set(reg::IMS, self.get(reg::IMS) | value & reg::CAUSES),
            reg::IMC => self.set(reg::IMS, self.get(reg::IMS) & !value),
            register if register < reg::END => return self.store(register, value),
            _ => {}
        }
        Work::Nothing
    }

    /// A store to a register that is memory, and what the rings make of it.
    fn store(&mut self, register: usize, value: u32) -> Work {
        self.set(register, self.get(register) & !reg::writable(register) | value & reg::writable(register));
        match register {
            reg::TDT => Work::Transmit,
            reg::RDT => Work::Receive,
            reg::TDBAL | reg::TDBAH | reg::TDLEN | reg::TDH => {
                // The frame in flight is of another ring.
                self.in_flight = None;
                Work::Transmit
            }
            reg::RDBAL | reg::RDBAH | reg::RDLEN | reg::RDH | reg::RCTL => Work::Receive,
            reg::TCTL => Work::Transmit,
            _ => Work::Nothing,
        }
    }

    fn control(&mut self, value: u32) -> Work {
        if value & reg::CTRL_PHY_RESET != 0 {
            self.phy = Phy::default();
        }
        if value & reg::CTRL_RESET != 0 {
            self.reset_registers();
            return Work::Anything;
        }
        self.set(reg::CTRL, value & !reg::CTRL_PHY_RESET);
        Work::Nothing
    }

    fn eecd(&self) -> u32 {
        let kept = self.get(reg::EECD);
        let grant = if kept & reg::EECD_REQUEST != 0 { reg::EECD_GRANT } else { 0 };
        let output = if self.eeprom.output() { reg::EECD_DATA_OUT } else { 0 };
        kept | grant | output | reg::EECD_PRESENT
    }

    /// A transfer to or from the transceiver.
    fn management(&mut self, value: u32) {
        let register = (value >> 16 & 0x1f) as usize;
        let answer = match (value >> 21 & 0x1f == PHY_ADDRESS, value >> 26 & 0b11) {
            (true, reg::MDIC_READ) => value & !0xffff | u32::from(self.phy.read(register, self.link)),
            (true, reg::MDIC_WRITE) => {
                self.phy.write(register, value as u16);
                value
            }
            _ => value | reg::MDIC_ERROR,
        };
        self.set(reg::MDIC, answer | reg::MDIC_READY);
        if value & reg::MDIC_INTERRUPT != 0 {
            self.cause(reg::CAUSE_MDIO);
        }
    }

    /// Counts a frame in the statistics `which`.
    fn count(&mut self, which: [usize; 4], bytes: usize) {
        for (at, register) in which.into_iter().enumerate() {
            if at % 2 == 0 {
                self.set(register, self.get(register).saturating_add(1));
                continue;
            }
            let total = u64::from(self.get(register)) | u64::from(self.get(register + 4)) << 32;
            let total = total.saturating_add(bytes as u64);
            self.set(register, total as u32);
            self.set(register + 4, (total >> 32) as u32);
        }
    }
}

/// A ring as its registers describe it.
#[derive(Clone, Copy, Debug)]
struct Ring {
    base: u64,
    count: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    fn descriptor(self, index: u32) -> u64 {
        self.base.wrapping_add(16 * u64::from(index))
    }

    fn next(self, index: u32) -> u32 {
        if index + 1 >= self.count { 0 } else { index + 1 }
    }

    /// Descriptors that the driver has handed over.
    fn available(self) -> u32 {
        if self.head <= self.tail { self.tail - self.head } else { self.count - self.head + self.tail }
    }
}

impl E1000 {
    /// The ring whose registers begin at `first`; `None` when they make no sense.
    fn ring(&self, first: usize) -> Option<Ring> {
        let base = u64::from(self.get(first)) | u64::from(self.get(first + 4)) << 32;
        let ring =
            Ring { base, count: self.get(first + 8) / 16, head: self.get(first + 0x10), tail: self.get(first + 0x18) };
        (ring.head < ring.count && ring.tail < ring.count && base < 1 << 52).then_some(ring)
    }
}

fn eeprom_words(mac: Mac) -> [u16; eeprom::WORDS] {
    let mut words = [0; eeprom::WORDS];
    for (word, pair) in words.iter_mut().zip(mac.chunks_exact(2)) {
        *word = u16::from_le_bytes([pair[0], pair[1]]);
    }
    words[0x0a..0x10].copy_from_slice(&[0x640b, SUBSYSTEM, VENDOR, DEVICE, VENDOR, 0x0040]);
    let sum = words.iter().fold(0u16, |sum, &word| sum.wrapping_add(word));
    words[0x3f] = EEPROM_SUM.wrapping_sub(sum);
    words
}

impl Chip for E1000 {
    fn read(&mut self, bar: u8, offset: u64, size: usize) -> u64 {
        if bar == IO_BAR {
            let value = match offset {
                IO_ADDRESS => self.io_address,
                IO_DATA if size == 4 => self.read_register(self.io_address as usize & !3),
                _ => 0,
            };
            return narrow(value.into(), size);
        }
        let register = offset as usize & !3;
        let low = u64::from(self.read_register(register));
        match size {
            8 => low | u64::from(self.read_register(register + 4)) << 32,
            _ => narrow(low >> (8 * (offset & 3)), size),
        }
    }

    fn write(&mut self, bar: u8, offset: u64, size: usize, value: u64) -> Work {
        match (bar, offset, size) {
            (IO_BAR, IO_ADDRESS, 4) => {
                self.io_address = value as u32;
                Work::Nothing
            }
            (IO_BAR, IO_DATA, 4) => self.write_register(self.io_address as usize & !3, value as u32),
            (MEMORY_BAR, _, 4) if offset & 3 == 0 => self.write_register(offset as usize, value as u32),
            // Registers are written as words (section 13.1).
            _ => Work::Nothing,
        }
    }

    fn take_frame(&mut self, map: &GuestMap, frame: &mut Frame) -> bool {
        self.next_frame(map, frame)
    }

    fn frame_sent(&mut self, map: &GuestMap) {
        self.finish_frame(map);
    }

    fn has_room(&self, _map: &GuestMap) -> bool {
        self.has(reg::RCTL, reg::RCTL_ENABLE) && self.ring(reg::RDBAL).is_some_and(|ring| ring.available() != 0)
    }

    fn deliver(&mut self, map: &GuestMap, frame: &[u8]) -> Delivery {
        self.receive(map, frame)
    }

    fn interrupting(&mut self, now: Instant) -> bool {
        if self.get(reg::ICR) & self.get(reg::IMS) == 0 {
            self.raised = false;
        } else if !self.raised && self.quiet_until.is_none_or(|until| until <= now) {
            self.raised = true;
            self.quiet_until = Some(now + ITR_UNIT * (self.get(reg::ITR) & 0xffff));
        }
        self.raised
    }

    fn wake_at(&self) -> Option<Instant> {
        let wanted = !self.raised && self.get(reg::ICR) & self.get(reg::IMS) != 0;
        wanted.then_some(self.quiet_until).flatten()
    }

    fn set_link(&mut self, up: bool) {
        if self.link != up {
            self.link = up;
            self.cause(reg::CAUSE_LINK);
        }
    }

    fn reset(&mut self) {
        self.reset_registers();
        self.phy = Phy::default();
        self.eeprom = Eeprom::new(self.eeprom.words);
        (self.io_address, self.raised) = (0, false);
    }

    fn save(&self) -> Saved {
        let used = self.registers.iter().enumerate().filter(|&(_, &value)| value != 0);
        let registers = used.flat_map(|(at, &value)| [4 * at as u32, value]).collect();
        vec![
            ("registers", registers),
            ("phy", self.phy.save()),
            ("eeprom", self.eeprom.save()),
            ("contexts", self.contexts.save()),
            ("io_address", vec![self.io_address]),
        ]
    }

    fn load(&mut self, saved: &[(String, Vec<u32>)]) -> Result<(), BadState> {
        let mut registers = vec![0; REGISTER_WORDS];
        for pair in part(saved, "registers", |len| len % 2 == 0)?.chunks_exact(2) {
            let place = registers.get_mut(pair[0] as usize / 4).filter(|_| pair[0] % 4 == 0);
            *place.ok_or(BadState("registers"))? = pair[1] & reg::kept(pair[0] as usize);
        }
        let (mut phy, mut eeprom, mut contexts) = (Phy::default(), self.eeprom.clone(), Contexts::default());
        phy.load(part(saved, "phy", |_| true)?).then_some(()).ok_or(BadState("phy"))?;
        eeprom.load(part(saved, "eeprom", |_| true)?).then_some(()).ok_or(BadState("eeprom"))?;
        contexts.load(part(saved, "contexts", |_| true)?).then_some(()).ok_or(BadState("contexts"))?;
        self.io_address = part(saved, "io_address", |len| len == 1)?[0];
        (self.registers, self.phy, self.eeprom, self.contexts) = (registers, phy, eeprom, contexts);
        (self.in_flight, self.quiet_until, self.raised) = (None, None, false);
        Ok(())
    }
}

/// The low `size` bytes.
pub(crate) fn narrow(value: u64, size: usize) -> u64 {
    if size >= 8 { value } else { value & ((1 << (8 * size)) - 1) }
}

#[cfg(test)]
mod tests;

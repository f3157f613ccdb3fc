//! The plain RTL8139's ways: four buffers to send from, one to receive into (sections 5.6 and 5.7).

use ostler_memory::GuestMap;
use ostler_virtio::net::{Frame, Header};

use super::{BUFFER, InFlight, Rtl8139, registers as reg};
use crate::chip::Delivery;
use crate::dma;
use crate::packet::{CRC_BYTES, MIN_FRAME_BYTES};

/// A frame's status and its length come before it.
const HEAD_BYTES: usize = 4;
const MAX_FRAME_BYTES: usize = 1792;
const OK: u16 = 1 << 0;
const BROADCAST: u16 = 1 << 13;
const PHYSICAL: u16 = 1 << 14;
const MULTICAST: u16 = 1 << 15;
/// What CAPR is behind of where the driver reads.
const CAPR_OFFSET: u16 = 16;

impl Rtl8139 {
    pub(super) fn take_from_buffer(&mut self, map: &GuestMap, frame: &mut Frame) -> bool {
        let number = self.next[BUFFER] as usize;
        let status = self.long(reg::TSD + 4 * number);
        if status & reg::TSD_OWN != 0 {
            return false;
        }
        let len = (status & reg::TSD_SIZE) as usize;
        dma::read(map, self.long(reg::TSAD + 4 * number).into(), &mut frame.room()[..len]);
        frame.room()[len..MIN_FRAME_BYTES.max(len)].fill(0);
        frame.set_len(len.max(MIN_FRAME_BYTES));
        frame.header = Header::default();
        self.in_flight = Some(InFlight::Buffer);
        true
    }

    pub(super) fn give_back_buffer(&mut self) {
        let at = reg::TSD + 4 * self.next[BUFFER] as usize;
        self.set_long(at, self.long(at) | reg::TSD_OWN | reg::TSD_OK);
        self.next[BUFFER] = (self.next[BUFFER] + 1) % 4;
    }

    fn buffer_bytes(&self) -> usize {
        8192 << (self.long(reg::RCR) >> 11 & 0b11)
    }

    /// Where the driver will read, and where the next frame goes.
    fn places(&self) -> (usize, usize) {
        let size = self.buffer_bytes();
        let read = usize::from(self.word(reg::CAPR).wrapping_add(CAPR_OFFSET)) % size;
        (read, usize::from(self.word(reg::CBR)) % size)
    }

    pub(super) fn buffer_is_empty(&self) -> bool {
        let (read, write) = self.places();
        read == write
    }

    /// Bytes that can be written before the buffer would look empty again.
    pub(super) fn buffer_room(&self) -> usize {
        let (read, write) = self.places();
        let size = self.buffer_bytes();
        (read + size - write - 1) % size
    }

    pub(super) fn deliver_to_buffer(&mut self, map: &GuestMap, frame: &[u8]) -> Delivery {
        let len = frame.len().max(MIN_FRAME_BYTES) + CRC_BYTES;
        if len > MAX_FRAME_BYTES {
            return Delivery::TooLong;
        }
        let taken = (HEAD_BYTES + len).next_multiple_of(4);
        if taken > self.buffer_room() {
            return Delivery::NoRoom;
        }
        let mut bytes = Vec::with_capacity(taken);
        bytes.extend_from_slice(&self.frame_status(frame).to_le_bytes());
        bytes.extend_from_slice(&(len as u16).to_le_bytes());
        bytes.extend_from_slice(frame);
        bytes.resize(HEAD_BYTES + len, 0);
        self.put(map, &bytes);
        let (_, write) = self.places();
        self.set_word(reg::CBR, ((write + taken) % self.buffer_bytes()) as u16);
        Delivery::Taken
    }

    fn frame_status(&self, frame: &[u8]) -> u16 {
        let kind = match frame.first_chunk::<6>() {
            Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => BROADCAST,
            Some([first, ..]) if first & 1 != 0 => MULTICAST,
            Some(to) if to[..] == self.registers[reg::IDR..reg::IDR + 6] => PHYSICAL,
            _ => 0,
        };
        OK | kind
    }

    /// Writes where the next frame goes: past the end where the driver has room there, else around.
    fn put(&self, map: &GuestMap, bytes: &[u8]) {
        let start = u64::from(self.long(reg::RBSTART));
        let (_, write) = self.places();
        // 64 KiB cannot have room behind them.
        let wraps = self.long(reg::RCR) & reg::RCR_NO_WRAP == 0 || self.buffer_bytes() == 65_536;
        let cut = if wraps { bytes.len().min(self.buffer_bytes() - write) } else { bytes.len() };
        let (front, back) = bytes.split_at(cut);
        dma::write(map, start + write as u64, front);
        dma::write(map, start, back);
    }
}

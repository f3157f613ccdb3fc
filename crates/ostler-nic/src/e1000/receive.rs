//! Frames on their way to the driver (8254x manual, section 3.2).

use ostler_memory::GuestMap;
use ostler_virtio::net::frame::{Network, network};

use super::{E1000, Ring, registers as reg};
use crate::chip::Delivery;
use crate::dma;
use crate::packet::{self, CRC_BYTES, MIN_FRAME_BYTES, Transport};

/// Without `RCTL_LONG`, frames may have so many bytes with their CRC, and a VLAN tag besides.
const MAX_BYTES: usize = 1518;
const MAX_TAGGED_BYTES: usize = 1522;
const MAX_LONG_BYTES: usize = 16_384;

const DONE: u8 = 1 << 0;
const END_OF_PACKET: u8 = 1 << 1;
const IGNORE_CHECKSUMS: u8 = 1 << 2;
const TAGGED: u8 = 1 << 3;
const TRANSPORT_CHECKED: u8 = 1 << 5;
const IP_CHECKED: u8 = 1 << 6;
const ERROR_TRANSPORT: u8 = 1 << 5;
const ERROR_IP: u8 = 1 << 6;

impl E1000 {
    pub(super) fn receive(&mut self, map: &GuestMap, frame: &[u8]) -> Delivery {
        let Some(ring) = self.ring(reg::RDBAL) else { return Delivery::NoRoom };
        if !self.has(reg::RCTL, reg::RCTL_ENABLE) {
            return Delivery::NoRoom;
        }
        let tag = packet::tag(frame, self.vlan_type());
        if !self.accepts(frame, tag) {
            return Delivery::Refused;
        }
        let whole = frame.len().max(MIN_FRAME_BYTES) + CRC_BYTES;
        let limit = match tag {
            _ if self.has(reg::RCTL, reg::RCTL_LONG) => MAX_LONG_BYTES,
            Some(_) => MAX_TAGGED_BYTES,
            None => MAX_BYTES,
        };
        let buffer_bytes = self.buffer_bytes();
        if whole > limit || whole.div_ceil(buffer_bytes) >= ring.count as usize {
            return Delivery::TooLong;
        }
        let stripped = tag.filter(|_| self.has(reg::CTRL, reg::CTRL_VLAN_MODE));
        let bytes = self.as_delivered(frame, stripped.is_some());
        if bytes.len().div_ceil(buffer_bytes) > ring.available() as usize {
            return Delivery::NoRoom;
        }
        let (status, errors) = self.checked(frame);
        let status = status | if stripped.is_some() { TAGGED } else { 0 };
        self.fill(map, ring, &bytes, [status, errors], stripped.unwrap_or(0));
        self.count(reg::RECEIVED, whole);
        Delivery::Taken
    }

    /// Filled up to the shortest frame, with room for the CRC where the driver wants it.
    fn as_delivered(&self, frame: &[u8], strip_tag: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(frame.len() + MIN_FRAME_BYTES);
        if strip_tag {
            bytes.extend_from_slice(&frame[..12]);
            bytes.extend_from_slice(&frame[16..]);
        } else {
            bytes.extend_from_slice(frame);
        }
        let crc = if self.has(reg::RCTL, reg::RCTL_STRIP_CRC) { 0 } else { CRC_BYTES };
        bytes.resize(bytes.len().max(MIN_FRAME_BYTES) + crc, 0);
        bytes
    }

    fn fill(&mut self, map: &GuestMap, ring: Ring, bytes: &[u8], status: [u8; 2], tag: u16) {
        let (mut index, size) = (ring.head, self.buffer_bytes());
        let last = bytes.len().div_ceil(size) - 1;
        for (number, piece) in bytes.chunks(size).enumerate() {
            let at = ring.descriptor(index);
            let mut address = [0; 8];
            dma::read(map, at, &mut address);
            dma::write(map, u64::from_le_bytes(address), piece);
            dma::store(map, at + 8, piece.len() as u32);
            let done = DONE | if number == last { END_OF_PACKET | status[0] } else { 0 };
            let errors = if number == last { status[1] } else { 0 };
            dma::store(map, at + 12, u32::from_le_bytes([done, errors, tag as u8, (tag >> 8) as u8]));
            index = ring.next(index);
        }
        self.set(reg::RDH, index);
        self.cause(reg::CAUSE_RECEIVED);
        let left = Ring { head: index, ..ring }.available();
        // RCTL.RDMTS: a half, a quarter or an eighth of the ring.
        if left <= ring.count >> ((self.get(reg::RCTL) >> 8 & 0b11) + 1) {
            self.cause(reg::CAUSE_FEW_DESCRIPTORS);
        }
    }

    /// What is said of the frame's checksums: status and errors.
    fn checked(&self, frame: &[u8]) -> (u8, u8) {
        let (mut status, mut errors) = (0, 0);
        if self.has(reg::RXCSUM, reg::RXCSUM_IP)
            && let Some(Network::V4(at)) = network(frame)
            && let Some(len) = packet::ipv4_header_bytes(frame, at)
        {
            status |= IP_CHECKED;
            let sound = ostler_virtio::net::checksum::sum(&frame[at..at + len], 0) == 0xffff;
            errors |= if sound { 0 } else { ERROR_IP };
        }
        if self.has(reg::RXCSUM, reg::RXCSUM_TRANSPORT)
            && let Some(transport) = Transport::of(frame)
            && let Some(sound) = transport.verifies(frame)
        {
            // The chip says so of UDP, too (section 3.2.9).
            status |= TRANSPORT_CHECKED;
            errors |= if sound { 0 } else { ERROR_TRANSPORT };
        }
        (if status & TRANSPORT_CHECKED == 0 { status | IGNORE_CHECKSUMS } else { status }, errors)
    }

    fn buffer_bytes(&self) -> usize {
        let control = self.get(reg::RCTL);
        let shift = control >> 16 & 0b11;
        // The extended sizes have no first (section 13.4.22).
        if control & reg::RCTL_SIZE_EXTENSION != 0 && shift != 0 { 32_768 >> shift } else { 2048 >> shift }
    }

    pub(super) fn vlan_type(&self) -> u16 {
        self.get(reg::VET) as u16
    }

    fn accepts(&self, frame: &[u8], tag: Option<u16>) -> bool {
        let Some(destination) = frame.first_chunk::<6>() else { return false };
        tag.is_none_or(|tag| self.accepts_vlan(tag & 0xfff)) && self.accepts_address(destination)
    }

    fn accepts_vlan(&self, vlan: u16) -> bool {
        let word = self.get(reg::VFTA + 4 * usize::from(vlan / 32));
        !self.has(reg::RCTL, reg::RCTL_VLAN_FILTER) || word >> (vlan % 32) & 1 != 0
    }

    fn accepts_address(&self, destination: &[u8; 6]) -> bool {
        let group = destination[0] & 1 != 0;
        let all = if group { reg::RCTL_MULTICAST } else { reg::RCTL_UNICAST };
        self.has(reg::RCTL, all)
            || *destination == [0xff; 6] && self.has(reg::RCTL, reg::RCTL_BROADCAST)
            || (0..reg::RA_COUNT).any(|entry| self.is_address(entry, destination))
            || group && self.in_multicast_table(destination)
    }

    fn is_address(&self, entry: usize, destination: &[u8; 6]) -> bool {
        let [a, b, c, d, e, f] = *destination;
        let (low, high) = (self.get(reg::RA + 8 * entry), self.get(reg::RA + 8 * entry + 4));
        // The two address select bits of all but the destination address are reserved.
        high & (reg::RAH_VALID | 0x3_ffff) == u32::from_le_bytes([e, f, 0, 0]) | reg::RAH_VALID
            && low == u32::from_le_bytes([a, b, c, d])
    }

    fn in_multicast_table(&self, destination: &[u8; 6]) -> bool {
        // RCTL.MO: which twelve of the upper bits.
        let shift = [4, 3, 2, 0][(self.get(reg::RCTL) >> 12 & 0b11) as usize];
        let upper = u32::from(destination[4]) | u32::from(destination[5]) << 8;
        let hash = (upper >> shift & 0xfff) as usize;
        self.get(reg::MTA + 4 * (hash / 32)) >> (hash % 32) & 1 != 0
    }
}

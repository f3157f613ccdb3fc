//! The descriptor rings of the RTL8139C+ (section 7).

use ostler_memory::GuestMap;
use ostler_virtio::net::frame::{self, ETHERNET_BYTES, Network};
use ostler_virtio::net::header::{self, Header};
use ostler_virtio::net::{Frame, MAX_FRAME_BYTES};

use super::{InFlight, RECEIVE, Rtl8139, SEND, registers as reg};
use crate::chip::Delivery;
use crate::dma;
use crate::packet::{self, CRC_BYTES, IP_TCP, IP_UDP, MIN_FRAME_BYTES, Transport};

pub const MAX_DESCRIPTORS: u32 = 64;

const OWN: u32 = 1 << 31;
const END_OF_RING: u32 = 1 << 30;
const FIRST: u32 = 1 << 29;
const LAST: u32 = 1 << 28;
const SEGMENT: u32 = 1 << 27;
const SIZE_SHIFT: u32 = 16;
const SIZE: u32 = 0x7ff;
const IP_CHECKSUM: u32 = 1 << 18;
const UDP_CHECKSUM: u32 = 1 << 17;
const TCP_CHECKSUM: u32 = 1 << 16;
const SENT_BYTES: u32 = 0xffff;
const SENT_TAG: u32 = 1 << 17;
const RECEIVED_BYTES: u32 = 0x1fff;
const RECEIVED_TAG: u32 = 1 << 16;
const MULTICAST: u32 = 1 << 26;
const PHYSICAL: u32 = 1 << 25;
const BROADCAST: u32 = 1 << 24;
/// Protocol: TCP, UDP, other IP.
const PROTOCOL_SHIFT: u32 = 16;
const IP_WRONG: u32 = 1 << 15;
const UDP_WRONG: u32 = 1 << 14;
const TCP_WRONG: u32 = 1 << 13;
const VLAN: u16 = 0x8100;

impl Rtl8139 {
    fn descriptor(&self, register: usize, index: u32) -> u64 {
        // Rings begin at a multiple of 256.
        (self.address(register) & 0x000f_ffff_ffff_ff00) + 16 * u64::from(index)
    }

    fn after(index: u32, command: u32) -> u32 {
        if command & END_OF_RING != 0 || index + 1 >= MAX_DESCRIPTORS { 0 } else { index + 1 }
    }

    pub(super) fn take_from_ring(&mut self, map: &GuestMap, frame: &mut Frame) -> bool {
        for _ in 0..MAX_DESCRIPTORS {
            if !self.polled {
                return false;
            }
            let Some((count, [command, tag], len)) = self.gather(map, frame) else {
                self.polled = false;
                return false;
            };
            self.in_flight = Some(InFlight::Ring(count));
            if let Some(len) = len {
                frame.set_len(len);
                if prepare(frame, command, tag).is_some() {
                    return true;
                }
            }
            // What cannot be a frame is lost, and its descriptors are given back.
            self.in_flight = None;
            self.give_back_ring(map, count);
            self.cause(reg::ISR_SENT);
        }
        false
    }

    /// The frame at the ring's head: how many descriptors, the first two words of the first, and its
    /// length where that is one; `None` when there is none.
    fn gather(&self, map: &GuestMap, frame: &mut Frame) -> Option<(u32, [u32; 2], Option<usize>)> {
        let (mut index, mut len, mut first) = (self.next[SEND], Some(0), [0; 2]);
        for number in 0..MAX_DESCRIPTORS {
            let [command, tag, low, high] = dma::descriptor(map, self.descriptor(reg::TNPDS, index), 0);
            if command & OWN == 0 {
                return None;
            }
            if number == 0 {
                first = [command, tag];
            }
            let piece = (command & SENT_BYTES) as usize;
            len = len.and_then(|at: usize| {
                dma::read(map, u64::from(low) | u64::from(high) << 32, frame.room().get_mut(at..at + piece)?);
                Some(at + piece)
            });
            if command & LAST != 0 {
                let sound = len.filter(|len| (ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(len));
                return Some((number + 1, first, sound.filter(|_| first[0] & FIRST != 0)));
            }
            index = Self::after(index, command);
        }
        Some((MAX_DESCRIPTORS, first, None))
    }

    pub(super) fn give_back_ring(&mut self, map: &GuestMap, count: u32) {
        for _ in 0..count {
            let at = self.descriptor(reg::TNPDS, self.next[SEND]);
            let command = dma::load(map, at);
            // Where a segment size was, the driver finds whether it was sent: without an error.
            dma::store(map, at, command & (END_OF_RING | FIRST | LAST));
            self.next[SEND] = Self::after(self.next[SEND], command);
        }
    }

    pub(super) fn ring_has_room(&self, map: &GuestMap) -> bool {
        dma::load(map, self.descriptor(reg::RDSAR, self.next[RECEIVE])) & OWN != 0
    }

    pub(super) fn deliver_to_ring(&mut self, map: &GuestMap, frame: &[u8]) -> Delivery {
        let at = self.descriptor(reg::RDSAR, self.next[RECEIVE]);
        let [command, _, low, high] = dma::descriptor(map, at, 0);
        if command & OWN == 0 {
            return Delivery::NoRoom;
        }
        let strips = self.word(reg::CPCR) & reg::CPCR_VLAN != 0;
        let tag = packet::tag(frame, VLAN).filter(|_| strips);
        let mut bytes = Vec::with_capacity(frame.len() + MIN_FRAME_BYTES);
        bytes.extend_from_slice(frame);
        if tag.is_some() {
            bytes.drain(12..16);
        }
        bytes.resize(bytes.len().max(MIN_FRAME_BYTES) + CRC_BYTES, 0);
        if bytes.len() > (command & RECEIVED_BYTES) as usize {
            return Delivery::TooLong;
        }
        dma::write(map, u64::from(low) | u64::from(high) << 32, &bytes);
        dma::store(map, at + 4, tag.map_or(0, |tag| RECEIVED_TAG | u32::from(tag.swap_bytes())));
        let status = FIRST | LAST | kind(frame) | self.checked(frame) | bytes.len() as u32;
        dma::store(map, at, command & END_OF_RING | status);
        self.next[RECEIVE] = Self::after(self.next[RECEIVE], command);
        Delivery::Taken
    }

    /// The frame's protocol, and which of its checksums are wrong.
    fn checked(&self, frame: &[u8]) -> u32 {
        let Some(Network::V4(at)) = frame::network(frame) else { return 0 };
        if self.word(reg::CPCR) & reg::CPCR_CHECKSUMS == 0 {
            return 0;
        }
        let header = packet::ipv4_header_bytes(frame, at).and_then(|len| frame.get(at..at + len));
        let sound = header.is_some_and(|header| ostler_virtio::net::checksum::sum(header, 0) == 0xffff);
        let ip_wrong = if sound { 0 } else { IP_WRONG };
        let (protocol, wrong) = match Transport::of(frame) {
            Some(found) if found.protocol == IP_TCP => {
                (1, found.verifies(frame).map_or(TCP_WRONG, |ok| if ok { 0 } else { TCP_WRONG }))
            }
            Some(found) if found.protocol == IP_UDP => {
                (2, if found.verifies(frame) == Some(false) { UDP_WRONG } else { 0 })
            }
            _ => (3, 0),
        };
        protocol << PROTOCOL_SHIFT | ip_wrong | wrong
    }
}

fn kind(frame: &[u8]) -> u32 {
    match frame.first_chunk::<6>() {
        Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => BROADCAST,
        Some([first, ..]) if first & 1 != 0 => MULTICAST,
        _ => PHYSICAL,
    }
}

/// Writes into the frame, and its header, what the driver has left to the chip; `None` when what it
/// wants cannot be done.
fn prepare(frame: &mut Frame, command: u32, tag: u32) -> Option<()> {
    let len = frame.bytes().len().max(MIN_FRAME_BYTES);
    let short = frame.bytes().len();
    frame.room()[short..len].fill(0);
    frame.header = Header::default();
    frame.set_len(len);
    let size = (command >> SIZE_SHIFT & SIZE) as u16;
    if command & SEGMENT != 0 {
        leave_checksum(frame, IP_TCP)?;
        let transport = Transport::of(frame.bytes())?;
        let Network::V4(ip) = transport.network else { return None };
        packet::set_ipv4_checksum(frame.bytes_mut(), ip);
        let payload = transport.start + usize::from(*frame.bytes().get(transport.start + 12)? >> 4) * 4;
        if size == 0 {
            return None;
        }
        if frame.bytes().len() > payload + usize::from(size) {
            (frame.header.gso_type, frame.header.gso_size) = (header::GSO_TCPV4, size);
            frame.header.hdr_len = payload as u16;
        }
    } else {
        if command & IP_CHECKSUM != 0
            && let Some(Network::V4(ip)) = frame::network(frame.bytes())
        {
            packet::set_ipv4_checksum(frame.bytes_mut(), ip);
        }
        for (wish, protocol) in [(TCP_CHECKSUM, IP_TCP), (UDP_CHECKSUM, IP_UDP)] {
            if command & wish != 0 {
                leave_checksum(frame, protocol)?;
            }
        }
    }
    if tag & SENT_TAG != 0 {
        packet::insert_tag(frame, VLAN, (tag as u16).swap_bytes())?;
    }
    Some(())
}

/// Puts the pseudo header's sum into the checksum's place, and says that the rest is for who is next.
fn leave_checksum(frame: &mut Frame, protocol: u8) -> Option<()> {
    let transport = Transport::of(frame.bytes()).filter(|found| found.protocol == protocol)?;
    let offset = transport.checksum_offset()?;
    let sum = transport.pseudo(frame.bytes(), transport.len);
    frame::set_word(frame.bytes_mut(), transport.start + offset, sum);
    frame.header.flags |= header::NEEDS_CSUM;
    (frame.header.csum_start, frame.header.csum_offset) = (transport.start as u16, offset as u16);
    frame.header.fits(frame.bytes().len()).then_some(())
}

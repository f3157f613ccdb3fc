//! Frames on their way from the driver (8254x manual, section 3.3).

use ostler_memory::GuestMap;
use ostler_virtio::net::frame::{self, ETHERNET_BYTES};
use ostler_virtio::net::header::{self, Header};
use ostler_virtio::net::{Frame, MAX_FRAME_BYTES, checksum};

use super::{E1000, Ring, registers as reg};
use crate::{dma, packet};

/// Bits of a descriptor's third word: the same in legacy ones, where the command is the last byte.
const END_OF_PACKET: u32 = 1 << 24;
const LEGACY_CHECKSUM: u32 = 1 << 26;
const SEGMENT: u32 = 1 << 26;
const REPORT: u32 = 1 << 27;
const EXTENDED: u32 = 1 << 29;
const TAG: u32 = 1 << 30;
const TYPE: u32 = 0xf << 20;
const TYPE_CONTEXT: u32 = 0;
const LENGTH: u32 = 0xf_ffff;
/// Bits of a context's third word.
const CONTEXT_TCP: u32 = 1 << 24;
const CONTEXT_IPV4: u32 = 1 << 25;
/// Bits of the last word.
const DONE: u32 = 1 << 0;
const INSERT_IP: u32 = 1 << 8;
const INSERT_TRANSPORT: u32 = 1 << 9;

/// The four words of a descriptor.
type Descriptor = [u32; 4];

/// What the last context descriptors have said: of checksums, and of segmentation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Contexts([Descriptor; 2]);

impl Contexts {
    pub fn save(&self) -> Vec<u32> {
        self.0.concat()
    }

    pub fn load(&mut self, saved: &[u32]) -> bool {
        let sound = saved.len() == 8;
        for (word, &value) in self.0.iter_mut().flatten().zip(saved) {
            *word = value;
        }
        sound
    }
}

/// Where checksums are, by a context.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    ip: [usize; 3],
    transport: [usize; 3],
}

impl Offsets {
    fn of(context: Descriptor) -> Self {
        let three = |word: u32| [word & 0xff, word >> 8 & 0xff, word >> 16].map(|at| at as usize);
        Self { ip: three(context[0]), transport: three(context[1]) }
    }
}

/// What the descriptors of a frame say of it.
#[derive(Clone, Copy, Debug, Default)]
struct Wishes {
    /// The commands of its first and its last descriptor.
    first: u32,
    last: u32,
    /// The last words of the same.
    options: u32,
    tag: u16,
    /// Where a legacy descriptor wants a checksum.
    legacy: Descriptor,
}

enum Gathered {
    /// The driver has not handed over its end yet.
    Incomplete,
    /// It ends before that descriptor, and has so many bytes.
    Frame(u32, Wishes, usize),
    /// It cannot be a frame.
    Bad(u32),
}

impl E1000 {
    pub(super) fn next_frame(&mut self, map: &GuestMap, frame: &mut Frame) -> bool {
        // Each descriptor is looked at once a call, whatever the driver writes meanwhile.
        let mut left = self.ring(reg::TDBAL).map_or(0, |ring| ring.count);
        while left != 0 && self.in_flight.is_none() && self.has(reg::TCTL, reg::TCTL_ENABLE) {
            left -= 1;
            let Some(ring) = self.ring(reg::TDBAL).filter(|ring| ring.available() != 0) else { return false };
            let descriptor = dma::descriptor(map, ring.descriptor(ring.head), 2);
            if is_context(descriptor) {
                self.contexts.0[usize::from(descriptor[2] & SEGMENT != 0)] = descriptor;
                self.in_flight = Some(ring.next(ring.head));
                self.give_back(map);
                continue;
            }
            match gather(map, ring, frame.room()) {
                Gathered::Incomplete => return false,
                Gathered::Bad(next) => {
                    self.in_flight = Some(next);
                    self.give_back(map);
                }
                Gathered::Frame(next, wishes, len) => {
                    self.in_flight = Some(next);
                    frame.set_len(len);
                    if self.prepare(frame, wishes).is_some() {
                        return true;
                    }
                    self.give_back(map);
                }
            }
        }
        false
    }

    /// The frame in flight is sent.
    pub(super) fn finish_frame(&mut self, map: &GuestMap) {
        if let Some(bytes) = self.give_back(map) {
            self.count(reg::SENT, bytes);
        }
    }

    /// Gives the descriptors in flight back; how many bytes they had.
    fn give_back(&mut self, map: &GuestMap) -> Option<usize> {
        let (end, ring) = (self.in_flight.take()?, self.ring(reg::TDBAL)?);
        let (mut index, mut causes, mut bytes) = (ring.head, 0, 0);
        while index != end {
            let at = ring.descriptor(index);
            let command = dma::load(map, at + 8);
            if command & REPORT != 0 {
                dma::store(map, at + 12, dma::load(map, at + 12) | DONE);
                causes |= reg::CAUSE_SENT;
            }
            bytes += (command & if command & EXTENDED != 0 { LENGTH } else { 0xffff }) as usize;
            index = ring.next(index);
        }
        self.set(reg::TDH, end);
        if end == ring.tail {
            causes |= reg::CAUSE_QUEUE_EMPTY;
        }
        self.cause(causes);
        Some(bytes)
    }

    /// Writes into the frame, and its header, what the driver has left to the chip; `None` when what
    /// it wants cannot be done.
    fn prepare(&self, frame: &mut Frame, wishes: Wishes) -> Option<()> {
        frame.header = Header::default();
        let extended = wishes.first & EXTENDED != 0;
        if extended && wishes.first & SEGMENT != 0 {
            self.segment(frame)?;
        } else if extended {
            checksums(frame, Offsets::of(self.contexts.0[0]), wishes.options)?;
        } else if wishes.last & LEGACY_CHECKSUM != 0 {
            let [_, _, command, options] = wishes.legacy;
            let (start, at) = ((options >> 8 & 0xff) as usize, (command >> 16 & 0xff) as usize);
            leave_checksum(frame, start, at)?;
        }
        if wishes.last & TAG != 0 && self.has(reg::CTRL, reg::CTRL_VLAN_MODE) {
            packet::insert_tag(frame, self.vlan_type(), wishes.tag)?;
        }
        Some(())
    }

    /// A frame that whoever is next cuts, or the card.
    fn segment(&self, frame: &mut Frame) -> Option<()> {
        let context = self.contexts.0[1];
        let offsets = Offsets::of(context);
        let (header_bytes, size) = (context[3] >> 8 & 0xff, context[3] >> 16);
        if context[2] & CONTEXT_TCP == 0 || size == 0 {
            return None;
        }
        let [start, at, _] = offsets.transport;
        let bytes = frame.bytes_mut();
        let len = bytes.len();
        let [ip, ..] = offsets.ip;
        let kind = if context[2] & CONTEXT_IPV4 != 0 {
            frame::set_word(bytes, ip + 2, len.checked_sub(ip)? as u16);
            packet::set_ipv4_checksum(bytes, ip);
            header::GSO_TCPV4
        } else {
            frame::set_word(bytes, ip + 4, len.checked_sub(ip + 40)? as u16);
            header::GSO_TCPV6
        };
        // The driver has summed the pseudo header without a length, which differs by segment.
        let sum = checksum::add(frame::word(bytes, at)?, len.checked_sub(start)? as u16);
        frame::set_word(bytes, at, sum);
        // One segment is a frame like others.
        if len > header_bytes as usize + size as usize {
            (frame.header.gso_type, frame.header.gso_size) = (kind, size as u16);
            frame.header.hdr_len = header_bytes as u16;
        }
        leave_checksum(frame, start, at)
    }
}

fn is_context(descriptor: Descriptor) -> bool {
    descriptor[2] & EXTENDED != 0 && descriptor[2] & TYPE == TYPE_CONTEXT
}

/// Copies the pieces of the frame at the head of `ring` into `room`.
fn gather(map: &GuestMap, ring: Ring, room: &mut [u8]) -> Gathered {
    let (mut index, mut len, mut wishes) = (ring.head, 0, Wishes::default());
    let mut fits = true;
    for number in 0..ring.available() {
        let descriptor = dma::descriptor(map, ring.descriptor(index), 2);
        let [low, high, command, options] = descriptor;
        if is_context(descriptor) {
            // A frame ends before its successor's context.
            return Gathered::Bad(index);
        }
        let extended = command & EXTENDED != 0;
        let piece = (command & if extended { LENGTH } else { 0xffff }) as usize;
        match room.get_mut(len..len + piece) {
            Some(room) if fits => dma::read(map, u64::from(low) | u64::from(high) << 32, room),
            _ => fits = false,
        }
        len = len.saturating_add(piece);
        if number == 0 {
            (wishes.first, wishes.options) = (command, options);
        }
        index = ring.next(index);
        if command & END_OF_PACKET != 0 {
            (wishes.last, wishes.tag, wishes.legacy) = (command, (options >> 16) as u16, descriptor);
            let sound = fits && (ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(&len);
            return if sound { Gathered::Frame(index, wishes, len) } else { Gathered::Bad(index) };
        }
    }
    Gathered::Incomplete
}

/// The checksums of an extended descriptor without segmentation.
fn checksums(frame: &mut Frame, offsets: Offsets, options: u32) -> Option<()> {
    if options & INSERT_IP != 0 {
        let [start, at, end] = offsets.ip;
        finish_checksum(frame.bytes_mut(), start, at, end)?;
    }
    if options & INSERT_TRANSPORT != 0 {
        let [start, at, end] = offsets.transport;
        if end != 0 {
            return finish_checksum(frame.bytes_mut(), start, at, end);
        }
        return leave_checksum(frame, start, at);
    }
    Some(())
}

/// Sums the bytes from `start` to `end`, which 0 puts at the frame's end, into the field at `at`.
fn finish_checksum(bytes: &mut [u8], start: usize, at: usize, end: usize) -> Option<()> {
    let end = if end == 0 { bytes.len() } else { end + 1 };
    bytes.get(at..at + 2)?;
    let sum = checksum::sum(bytes.get(start..end.min(bytes.len()))?, 0);
    frame::set_word(bytes, at, !sum);
    Some(())
}

/// Says that the checksum from `start` on, at `at`, is for who is next.
fn leave_checksum(frame: &mut Frame, start: usize, at: usize) -> Option<()> {
    frame.header.flags |= header::NEEDS_CSUM;
    frame.header.csum_start = start as u16;
    frame.header.csum_offset = at.checked_sub(start)? as u16;
    frame.header.fits(frame.bytes().len()).then_some(())
}

//! The packed virtqueue (virtio 1.2, section 2.8): one ring, written by driver and device in turn.

use std::sync::atomic::{Ordering, fence};

use ostler_memory::GuestMap;
use virtio_queue::desc::packed::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Position, RingConfig, RingError};
use crate::chain::{Broken, Chain, DESCRIPTOR_BYTES, MAX_DESCRIPTORS, indirect_entries};

/// The most descriptors of a ring (section 2.8.10.1).
const MAX_SIZE: u16 = 1 << 15;
/// Flags of a descriptor: `VIRTQ_DESC_F_WRITE`, `_AVAIL` and `_USED` (section 2.8.6).
const WRITE: u16 = 1 << 1;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const FLAGS_OFFSET: u64 = 14;
const ID_OFFSET: u64 = 12;
const LEN_OFFSET: u64 = 8;

/// Flags of an event suppression structure: `RING_EVENT_FLAGS_*` (section 2.8.10).
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESC: u16 = 2;
const EVENT_FLAGS_MASK: u16 = 3;
const EVENT_FLAGS_OFFSET: u64 = 2;
const EVENT_BYTES: usize = 4;
const EVENT_ALIGN: u64 = 4;

/// A place on the ring and the wrap counter that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    index: u16,
    wrap: bool,
}

impl Cursor {
    /// From the index in bits 0 to 14 and the wrap counter in bit 15.
    fn from_bits(bits: u16) -> Self {
        Self { index: bits & !(1 << 15), wrap: bits >> 15 != 0 }
    }

    fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    /// `slots` further on a ring of `size`; `slots` is at most `size`.
    fn forward(self, slots: u16, size: u16) -> Self {
        let sum = self.index + slots;
        if sum < size { Self { index: sum, ..self } } else { Self { index: sum - size, wrap: !self.wrap } }
    }

    fn back(self, slots: u16, size: u16) -> Self {
        match self.index.checked_sub(slots) {
            Some(index) => Self { index, ..self },
            None => Self { index: self.index + size - slots, wrap: !self.wrap },
        }
    }
}

#[derive(Debug)]
pub(super) struct PackedRing {
    size: u16,
    descriptors: u64,
    driver_event: u64,
    device_event: u64,
    next_avail: Cursor,
    next_used: Cursor,
    /// Descriptors used since the driver's wish for an interrupt was last looked at.
    used_unsignalled: u16,
    event_idx: bool,
    indirect: bool,
}

impl PackedRing {
    pub(super) fn new(config: &RingConfig, map: &GuestMap) -> Result<Self, RingError> {
        let ring = Self {
            size: config.size,
            descriptors: config.desc_table,
            driver_event: config.avail_ring,
            device_event: config.used_ring,
            next_avail: Cursor::from_bits(config.position.next_avail),
            next_used: Cursor::from_bits(config.position.next_used),
            used_unsignalled: 0,
            event_idx: config.event_idx,
            indirect: config.indirect,
        };
        ring.check(map)?;
        Ok(ring)
    }

    fn check(&self, map: &GuestMap) -> Result<(), RingError> {
        let inside = self.next_avail.index < self.size && self.next_used.index < self.size;
        let aligned = self.descriptors.is_multiple_of(DESCRIPTOR_BYTES.into())
            && self.driver_event.is_multiple_of(EVENT_ALIGN)
            && self.device_event.is_multiple_of(EVENT_ALIGN);
        if self.size == 0 || self.size > MAX_SIZE || !inside || !aligned {
            return Err(RingError::Geometry);
        }
        let ring_bytes = usize::from(self.size) * DESCRIPTOR_BYTES as usize;
        let parts =
            [(self.descriptors, ring_bytes), (self.driver_event, EVENT_BYTES), (self.device_event, EVENT_BYTES)];
        let backed = parts.iter().all(|&(gpa, len)| map.check_range(GuestAddress(gpa), len));
        if backed { Ok(()) } else { Err(RingError::NotMemory) }
    }

    pub(super) fn position(&self) -> Position {
        Position { next_avail: self.next_avail.bits(), next_used: self.next_used.bits() }
    }

    pub(super) fn position_before(&self, slots: u16) -> Position {
        Position { next_avail: self.next_avail.back(slots, self.size).bits(), ..self.position() }
    }

    pub(super) fn pop_into(&mut self, map: &GuestMap, chain: &mut Chain) -> Result<bool, Broken> {
        if !self.is_available(map)? {
            return Ok(false);
        }
        chain.restart(0, 0);
        let first = self.descriptor(map, self.next_avail)?;
        if first.refers_to_indirect_table() {
            if !self.indirect || first.has_next() {
                return Err(Broken::Indirect);
            }
            chain.restart(first.id(), 1);
            collect_indirect(map, first, chain)?;
        } else {
            self.follow(map, first, chain)?;
        }
        self.next_avail = self.next_avail.forward(chain.slots, self.size);
        Ok(true)
    }

    /// The chain occupies neighbours on the ring; the buffer's id is in the last one.
    fn follow(&self, map: &GuestMap, first: Descriptor, chain: &mut Chain) -> Result<(), Broken> {
        let (mut descriptor, mut at) = (first, self.next_avail);
        for slots in 1..=self.size.min(MAX_DESCRIPTORS as u16) {
            if descriptor.refers_to_indirect_table() {
                return Err(Broken::Indirect);
            }
            chain.take(descriptor.addr().0, descriptor.len(), descriptor.is_write_only())?;
            if !descriptor.has_next() {
                (chain.head, chain.slots) = (descriptor.id(), slots);
                return Ok(());
            }
            at = at.forward(1, self.size);
            descriptor = self.descriptor(map, at)?;
        }
        Err(Broken::TooLong)
    }

    pub(super) fn unpop(&mut self, chain: &Chain) {
        self.next_avail = self.next_avail.back(chain.slots, self.size);
    }

    pub(super) fn push(&mut self, map: &GuestMap, chain: &Chain, len: u32) -> Result<(), Broken> {
        let flags = self.write_used(map, self.next_used, chain, len)?;
        // Released: who sees the flags sees the id and the length.
        store(map, self.gpa(self.next_used) + FLAGS_OFFSET, flags, Ordering::Release)?;
        self.advance(chain.slots);
        Ok(())
    }

    pub(super) fn push_all(&mut self, map: &GuestMap, used: &[(Chain, u32)]) -> Result<(), Broken> {
        let Some(((first, first_len), after)) = used.split_first() else { return Ok(()) };
        let mut at = self.next_used.forward(first.slots, self.size);
        for (chain, len) in after {
            let flags = self.write_used(map, at, chain, *len)?;
            store(map, self.gpa(at) + FLAGS_OFFSET, flags, Ordering::Relaxed)?;
            at = at.forward(chain.slots, self.size);
        }
        // The driver comes to the others by way of the first.
        self.push(map, first, *first_len)?;
        for (chain, _) in after {
            self.advance(chain.slots);
        }
        Ok(())
    }

    /// Writes the id and length of a used descriptor; its flags, which show it to the driver.
    fn write_used(&self, map: &GuestMap, at: Cursor, chain: &Chain, len: u32) -> Result<u16, Broken> {
        let gpa = self.gpa(at);
        store(map, gpa + ID_OFFSET, chain.head, Ordering::Relaxed)?;
        map.store(len.to_le(), GuestAddress(gpa + LEN_OFFSET), Ordering::Relaxed).map_err(|_| Broken::NotMemory)?;
        let turn = if at.wrap { AVAIL | USED } else { 0 };
        Ok(if len == 0 { turn } else { turn | WRITE })
    }

    fn advance(&mut self, slots: u16) {
        self.next_used = self.next_used.forward(slots, self.size);
        self.used_unsignalled = self.used_unsignalled.saturating_add(slots).min(self.size);
    }

    pub(super) fn needs_interrupt(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        // What was used has to be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let flags = load(map, self.driver_event + EVENT_FLAGS_OFFSET, Ordering::Acquire)?;
        let used = std::mem::take(&mut self.used_unsignalled);
        match flags & EVENT_FLAGS_MASK {
            EVENT_DISABLE => Ok(false),
            EVENT_DESC if self.event_idx => {
                let wanted = Cursor::from_bits(load(map, self.driver_event, Ordering::Relaxed)?);
                Ok(passed(wanted, self.next_used, used, self.size))
            }
            _ => Ok(true),
        }
    }

    pub(super) fn disable_kicks(&mut self, map: &GuestMap) -> Result<(), Broken> {
        store(map, self.device_event + EVENT_FLAGS_OFFSET, EVENT_DISABLE, Ordering::Relaxed)
    }

    pub(super) fn enable_kicks(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        let mut flags = EVENT_ENABLE;
        if self.event_idx {
            store(map, self.device_event, self.next_avail.bits(), Ordering::Relaxed)?;
            flags = EVENT_DESC;
        }
        store(map, self.device_event + EVENT_FLAGS_OFFSET, flags, Ordering::Release)?;
        // The wish has to be visible before the ring is looked at for the last time.
        fence(Ordering::SeqCst);
        self.is_available(map)
    }

    fn gpa(&self, at: Cursor) -> u64 {
        self.descriptors + u64::from(at.index) * u64::from(DESCRIPTOR_BYTES)
    }

    fn is_available(&self, map: &GuestMap) -> Result<bool, Broken> {
        let flags = load(map, self.gpa(self.next_avail) + FLAGS_OFFSET, Ordering::Acquire)?;
        let (avail, used) = (flags & AVAIL != 0, flags & USED != 0);
        Ok(avail == self.next_avail.wrap && used != self.next_avail.wrap)
    }

    fn descriptor(&self, map: &GuestMap, at: Cursor) -> Result<Descriptor, Broken> {
        map.read_obj(GuestAddress(self.gpa(at))).map_err(|_| Broken::NotMemory)
    }
}

/// Adds what the table of `outer` holds; of its flags only WRITE means anything (section 2.8.8).
fn collect_indirect(map: &GuestMap, outer: Descriptor, chain: &mut Chain) -> Result<(), Broken> {
    for index in 0..indirect_entries(outer.len())? {
        let offset = u64::from(index * DESCRIPTOR_BYTES);
        let gpa = outer.addr().0.checked_add(offset).ok_or(Broken::NotMemory)?;
        let inner: Descriptor = map.read_obj(GuestAddress(gpa)).map_err(|_| Broken::NotMemory)?;
        if inner.refers_to_indirect_table() {
            return Err(Broken::Indirect);
        }
        chain.take(inner.addr().0, inner.len(), inner.is_write_only())?;
    }
    Ok(())
}

/// Whether the last `used` descriptors before `next`, modulo the ring, include `wanted`.
fn passed(wanted: Cursor, next: Cursor, used: u16, size: u16) -> bool {
    // Both as distances from the start of the lap that `next` is on; the lap before is negative.
    let mut event = wanted.index;
    if wanted.wrap != next.wrap {
        event = event.wrapping_sub(size);
    }
    next.index.wrapping_sub(event).wrapping_sub(1) < used
}

fn load(map: &GuestMap, gpa: u64, order: Ordering) -> Result<u16, Broken> {
    map.load(GuestAddress(gpa), order).map(u16::from_le).map_err(|_| Broken::NotMemory)
}

fn store(map: &GuestMap, gpa: u64, value: u16, order: Ordering) -> Result<(), Broken> {
    map.store(value.to_le(), GuestAddress(gpa), order).map_err(|_| Broken::NotMemory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(index: u16, wrap: bool) -> Cursor {
        Cursor { index, wrap }
    }

    #[test]
    fn cursor_forward_and_back_turn_the_wrap_counter_at_the_end() {
        assert_eq!(at(5, true).forward(3, 8), at(0, false));
        assert_eq!(at(0, false).back(3, 8), at(5, true));
        assert_eq!(at(2, true).forward(8, 8), at(2, false));
        assert_eq!(at(2, false).back(8, 8), at(2, true));
        assert_eq!(Cursor::from_bits(at(0x7ffe, true).bits()), at(0x7ffe, true));
    }

    #[test]
    fn event_is_passed_when_it_lies_among_what_was_used() {
        assert!(passed(at(3, true), at(4, true), 1, 8));
        assert!(!passed(at(4, true), at(4, true), 1, 8));
        assert!(!passed(at(2, true), at(4, true), 1, 8));
        assert!(passed(at(7, true), at(1, false), 2, 8), "across the end of the ring");
        assert!(!passed(at(6, true), at(1, false), 2, 8));
        assert!(passed(at(4, true), at(4, false), 8, 8), "a whole lap");
    }
}

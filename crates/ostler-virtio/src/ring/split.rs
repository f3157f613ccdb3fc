//! The split virtqueue (virtio 1.2, section 2.7).

use std::sync::atomic::{Ordering, fence};

use ostler_memory::GuestMap;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Position, RingConfig, RingError};
use crate::chain::{Broken, Chain, DESCRIPTOR_BYTES, MAX_DESCRIPTORS, indirect_entries};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;
/// Flags and index come before the entries of both rings.
const AVAIL_HEADER_BYTES: u64 = 4;
const AVAIL_ENTRY_BYTES: u64 = 2;
const USED_HEADER_BYTES: u64 = 4;
const USED_ENTRY_BYTES: u64 = 8;

#[derive(Debug)]
pub(super) struct SplitRing {
    queue: Queue,
    indirect: bool,
    /// The used index when the driver's wish for an interrupt was last looked at.
    signalled: u16,
}

impl SplitRing {
    pub(super) fn new(config: &RingConfig, map: &GuestMap) -> Result<Self, RingError> {
        let mut queue = configured(config).map_err(|_| RingError::Geometry)?;
        queue.set_next_avail(config.position.next_avail);
        queue.set_next_used(config.position.next_used);
        queue.set_event_idx(config.event_idx);
        queue.set_ready(true);
        // The library takes an available ring at 0 for one that was not set.
        if config.avail_ring == 0 || !queue.is_valid(map) {
            return Err(RingError::NotMemory);
        }
        Ok(Self { queue, indirect: config.indirect, signalled: config.position.next_used })
    }

    pub(super) fn position(&self) -> Position {
        Position { next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    pub(super) fn position_before(&self, pops: usize) -> Position {
        let position = self.position();
        Position { next_avail: position.next_avail.wrapping_sub(pops as u16), ..position }
    }

    pub(super) fn pop_into(&mut self, map: &GuestMap, chain: &mut Chain) -> Result<bool, Broken> {
        let Some(head) = self.pop_head(map)? else { return Ok(false) };
        chain.restart(head, 1);
        let table = Table { gpa: self.queue.desc_table(), entries: self.queue.size().into() };
        table.collect(map, head, self.indirect, chain)?;
        Ok(true)
    }

    fn pop_head(&mut self, map: &GuestMap) -> Result<Option<u16>, Broken> {
        // Looked at before the iterator does: the driver may add an entry at any moment.
        if self.queue.avail_idx(map, Ordering::Acquire).map_err(broken)?.0 == self.queue.next_avail() {
            return Ok(None);
        }
        // With an entry there, the library's iterator ends only where the ring cannot be read.
        let chain = self.queue.iter(map).map_err(broken)?.next().ok_or(Broken::NotMemory)?;
        Ok(Some(chain.head_index()))
    }

    pub(super) fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    pub(super) fn push(&mut self, map: &GuestMap, chain: &Chain, len: u32) -> Result<(), Broken> {
        self.queue.add_used(map, chain.head, len).map_err(broken)
    }

    pub(super) fn push_all(&mut self, map: &GuestMap, used: &[(Chain, u32)]) -> Result<(), Broken> {
        let Some(((last, last_len), before)) = used.split_last() else { return Ok(()) };
        for (chain, len) in before {
            self.write_used(map, chain, *len)?;
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
        // This one stores the index, with which the driver sees them all.
        self.push(map, last, *last_len)
    }

    /// Writes the next entry of the used ring; the driver does not see it yet.
    fn write_used(&self, map: &GuestMap, chain: &Chain, len: u32) -> Result<(), Broken> {
        let entry = u64::from(self.queue.next_used() % self.queue.size());
        let gpa = GuestAddress(self.queue.used_ring() + USED_HEADER_BYTES + USED_ENTRY_BYTES * entry);
        let bytes = u64::from(chain.head) | u64::from(len) << 32;
        map.write_obj(bytes.to_le(), gpa).map_err(|_| Broken::NotMemory)
    }

    pub(super) fn needs_interrupt(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        // What was used has to be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let next = self.queue.next_used();
        let before = std::mem::replace(&mut self.signalled, next);
        if self.queue.event_idx_enabled() {
            let used_event = AVAIL_HEADER_BYTES + AVAIL_ENTRY_BYTES * u64::from(self.queue.size());
            let wanted = load(map, self.queue.avail_ring() + used_event)?;
            // The rule of section 2.7.10.2: the index has moved past what the driver waits for.
            return Ok(next.wrapping_sub(wanted).wrapping_sub(1) < next.wrapping_sub(before));
        }
        Ok(load(map, self.queue.avail_ring())? & NO_INTERRUPT == 0)
    }

    pub(super) fn disable_kicks(&mut self, map: &GuestMap) -> Result<(), Broken> {
        self.queue.disable_notification(map).map_err(broken)
    }

    pub(super) fn enable_kicks(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        self.queue.enable_notification(map).map_err(broken)
    }
}

fn configured(config: &RingConfig) -> Result<Queue, virtio_queue::Error> {
    let mut queue = Queue::new(config.size)?;
    queue.try_set_desc_table_address(GuestAddress(config.desc_table))?;
    queue.try_set_avail_ring_address(GuestAddress(config.avail_ring))?;
    queue.try_set_used_ring_address(GuestAddress(config.used_ring))?;
    Ok(queue)
}

fn load(map: &GuestMap, gpa: u64) -> Result<u16, Broken> {
    map.load(GuestAddress(gpa), Ordering::Relaxed).map(u16::from_le).map_err(|_| Broken::NotMemory)
}

fn broken(error: virtio_queue::Error) -> Broken {
    match error {
        virtio_queue::Error::InvalidAvailRingIndex => Broken::AvailIndex,
        _ => Broken::NotMemory,
    }
}

/// Where descriptors are read from.
#[derive(Clone, Copy, Debug)]
struct Table {
    gpa: u64,
    entries: u32,
}

impl Table {
    fn descriptor(self, map: &GuestMap, index: u16) -> Result<Descriptor, Broken> {
        if u32::from(index) >= self.entries {
            return Err(Broken::Index(index));
        }
        let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
        let gpa = self.gpa.checked_add(offset).ok_or(Broken::NotMemory)?;
        map.read_obj(GuestAddress(gpa)).map_err(|_| Broken::NotMemory)
    }

    /// Adds to `chain` what the chain from `head` on consists of; `indirect` says that the driver
    /// may use indirect tables.
    fn collect(self, map: &GuestMap, head: u16, indirect: bool, chain: &mut Chain) -> Result<(), Broken> {
        let first = self.descriptor(map, head)?;
        if !first.refers_to_indirect_table() {
            return self.follow(map, first, chain);
        }
        if !indirect || first.has_next() {
            return Err(Broken::Indirect);
        }
        let table = Self { gpa: first.addr().0, entries: indirect_entries(first.len())? };
        table.follow(map, table.descriptor(map, 0)?, chain)
    }

    fn follow(self, map: &GuestMap, mut descriptor: Descriptor, chain: &mut Chain) -> Result<(), Broken> {
        for _ in 0..self.entries.min(MAX_DESCRIPTORS) {
            if descriptor.refers_to_indirect_table() {
                // Not inside a table, and not after other descriptors: no driver does either.
                return Err(Broken::Indirect);
            }
            chain.take(descriptor.addr().0, descriptor.len(), descriptor.is_write_only())?;
            if !descriptor.has_next() {
                return Ok(());
            }
            descriptor = self.descriptor(map, descriptor.next())?;
        }
        Err(Broken::TooLong)
    }
}

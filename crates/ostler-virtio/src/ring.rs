//! One split virtqueue (virtio 1.2, section 2.7) as its device sees it.

use std::sync::atomic::Ordering;

use ostler_memory::GuestMap;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain::{Broken, Chain, Table};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;

#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("the driver gave its queue an impossible size or alignment")]
    Geometry(#[from] virtio_queue::Error),
    #[error("the driver's rings are not in guest memory")]
    NotMemory,
}

/// Where the device stands: the next entries of the available and the used ring, modulo 2^16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub next_avail: u16,
    pub next_used: u16,
}

/// A queue as the driver configured it; addresses are guest physical.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingConfig {
    pub size: u16,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
    pub position: Position,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    indirect: bool,
}

impl Ring {
    /// A ring whose three parts are in guest memory now; they may be gone later.
    pub fn new(config: &RingConfig, map: &GuestMap) -> Result<Self, RingError> {
        let mut queue = Queue::new(config.size)?;
        queue.try_set_desc_table_address(GuestAddress(config.desc_table))?;
        queue.try_set_avail_ring_address(GuestAddress(config.avail_ring))?;
        queue.try_set_used_ring_address(GuestAddress(config.used_ring))?;
        queue.set_next_avail(config.position.next_avail);
        queue.set_next_used(config.position.next_used);
        queue.set_event_idx(config.event_idx);
        queue.set_ready(true);
        // The library takes an available ring at 0 for one that was not set.
        if config.avail_ring == 0 || !queue.is_valid(map) {
            return Err(RingError::NotMemory);
        }
        Ok(Self { queue, indirect: config.indirect })
    }

    pub fn position(&self) -> Position {
        Position { next_avail: self.queue.next_avail(), next_used: self.queue.next_used() }
    }

    /// The next available chain.
    pub fn pop(&mut self, map: &GuestMap) -> Result<Option<Chain>, Broken> {
        let Some(head) = self.pop_head(map)? else { return Ok(None) };
        let table = Table { gpa: self.queue.desc_table(), entries: self.queue.size().into() };
        Chain::parse(map, table, head, self.indirect).map(Some)
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

    /// Takes back the last `pop`.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives the chain `head` back, `len` bytes of it written.
    pub fn push(&mut self, map: &GuestMap, head: u16, len: u32) -> Result<(), Broken> {
        self.queue.add_used(map, head, len).map_err(broken)
    }

    /// Whether the driver wants to hear of what was pushed since the last call.
    pub fn needs_interrupt(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        let wanted = self.queue.needs_notification(map).map_err(broken)?;
        if !wanted || self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = map
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(|_| Broken::NotMemory)?;
        Ok(flags & NO_INTERRUPT == 0)
    }

    /// Asks the driver not to ring the doorbell.
    pub fn disable_kicks(&mut self, map: &GuestMap) -> Result<(), Broken> {
        self.queue.disable_notification(map).map_err(broken)
    }

    /// Asks for the doorbell again; true when chains came in meanwhile.
    pub fn enable_kicks(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        self.queue.enable_notification(map).map_err(broken)
    }
}

fn broken(error: virtio_queue::Error) -> Broken {
    match error {
        virtio_queue::Error::InvalidAvailRingIndex => Broken::AvailIndex,
        _ => Broken::NotMemory,
    }
}

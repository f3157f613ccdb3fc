//! One virtqueue as its device sees it, in the layout that the driver chose.

mod packed;
mod split;

use ostler_memory::GuestMap;
use packed::PackedRing;
use split::SplitRing;

use crate::chain::{Broken, Chain};

#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("the driver gave its queue an impossible size or alignment")]
    Geometry,
    #[error("the driver's rings are not in guest memory")]
    NotMemory,
}

/// Where the device stands.
///
/// In a split ring these are the next entries of the available and the used ring, modulo 2^16; in a
/// packed one the next descriptors of each kind, with the wrap counter as bit 15 (see
/// [`Position::PACKED_START`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    pub next_avail: u16,
    pub next_used: u16,
}

impl Position {
    /// Where every packed ring begins: at descriptor 0 with both wrap counters at 1 (section 2.8.1).
    pub const PACKED_START: Self = Self { next_avail: 1 << 15, next_used: 1 << 15 };
}

/// A queue as the driver configured it; addresses are guest physical.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingConfig {
    pub size: u16,
    /// The descriptor table, or the packed ring itself.
    pub desc_table: u64,
    /// The available ring, or the driver's event suppression structure.
    pub avail_ring: u64,
    /// The used ring, or the device's event suppression structure.
    pub used_ring: u64,
    pub position: Position,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
    /// `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
}

/// A split or packed ring. What is popped may be pushed in any order; devices that offer
/// `VIRTIO_F_IN_ORDER` push in the order of their pops.
#[derive(Debug)]
pub struct Ring(Layout);

#[derive(Debug)]
enum Layout {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Ring {
    /// A ring whose three parts are in guest memory now; they may be gone later.
    pub fn new(config: &RingConfig, map: &GuestMap) -> Result<Self, RingError> {
        Ok(Self(if config.packed {
            Layout::Packed(PackedRing::new(config, map)?)
        } else {
            Layout::Split(SplitRing::new(config, map)?)
        }))
    }

    pub fn position(&self) -> Position {
        match &self.0 {
            Layout::Split(ring) => ring.position(),
            Layout::Packed(ring) => ring.position(),
        }
    }

    /// Where the device would stand had it not popped `held`, its last pops.
    pub fn position_before(&self, held: &[(Chain, u32)]) -> Position {
        match &self.0 {
            Layout::Split(ring) => ring.position_before(held.len()),
            Layout::Packed(ring) => ring.position_before(held.iter().map(|(chain, _)| chain.slots).sum()),
        }
    }

    /// Makes `chain` the next available one; false when there is none. What `chain` held is
    /// forgotten, its room is used again.
    pub fn pop_into(&mut self, map: &GuestMap, chain: &mut Chain) -> Result<bool, Broken> {
        match &mut self.0 {
            Layout::Split(ring) => ring.pop_into(map, chain),
            Layout::Packed(ring) => ring.pop_into(map, chain),
        }
    }

    /// The next available chain.
    pub fn pop(&mut self, map: &GuestMap) -> Result<Option<Chain>, Broken> {
        let mut chain = Chain::default();
        Ok(self.pop_into(map, &mut chain)?.then_some(chain))
    }

    /// Takes back the last pop, which gave `chain`.
    pub fn unpop(&mut self, chain: &Chain) {
        match &mut self.0 {
            Layout::Split(ring) => ring.unpop(),
            Layout::Packed(ring) => ring.unpop(chain),
        }
    }

    /// Gives `chain` back, `len` bytes of it written.
    pub fn push(&mut self, map: &GuestMap, chain: &Chain, len: u32) -> Result<(), Broken> {
        match &mut self.0 {
            Layout::Split(ring) => ring.push(map, chain, len),
            Layout::Packed(ring) => ring.push(map, chain, len),
        }
    }

    /// Gives several chains back, with the bytes written to each; the driver sees all or none.
    pub fn push_all(&mut self, map: &GuestMap, used: &[(Chain, u32)]) -> Result<(), Broken> {
        match &mut self.0 {
            Layout::Split(ring) => ring.push_all(map, used),
            Layout::Packed(ring) => ring.push_all(map, used),
        }
    }

    /// Whether the driver wants to hear of what was pushed since the last call.
    pub fn needs_interrupt(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        match &mut self.0 {
            Layout::Split(ring) => ring.needs_interrupt(map),
            Layout::Packed(ring) => ring.needs_interrupt(map),
        }
    }

    /// Asks the driver not to ring the doorbell.
    pub fn disable_kicks(&mut self, map: &GuestMap) -> Result<(), Broken> {
        match &mut self.0 {
            Layout::Split(ring) => ring.disable_kicks(map),
            Layout::Packed(ring) => ring.disable_kicks(map),
        }
    }

    /// Asks for the doorbell again; true when chains came in meanwhile.
    pub fn enable_kicks(&mut self, map: &GuestMap) -> Result<bool, Broken> {
        match &mut self.0 {
            Layout::Split(ring) => ring.enable_kicks(map),
            Layout::Packed(ring) => ring.enable_kicks(map),
        }
    }
}

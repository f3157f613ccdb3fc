//! What a driver makes available at once, and the rules it can break doing so.

use crate::buffer::{Buffer, Segment};

/// Descriptors of one chain. More than the queue's size is against the rules, but Linux does it
/// with indirect tables; this is the limit other implementations draw.
pub const MAX_DESCRIPTORS: u32 = 1024;

/// Split and packed descriptors have one size.
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;

/// How a driver broke the rules of its ring. The device needs a reset then: nothing on the ring
/// can be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("the ring is not in guest memory")]
    NotMemory,
    #[error("the available index is ahead by more than the queue's size")]
    AvailIndex,
    #[error("descriptor {0} does not exist")]
    Index(u16),
    #[error("a chain has a loop or more than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    #[error("a chain has 4 GiB or more")]
    TooLarge,
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    #[error("an indirect descriptor is not allowed here")]
    Indirect,
    #[error("an indirect table of {0} bytes is not possible")]
    IndirectLength(u32),
    #[error("a request lacks its header or its status, or is longer than any may be")]
    Request,
    #[error("the device that answers the queue is defective")]
    Device,
}

/// What the driver made available as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// By what the driver knows it: its first descriptor's index, in a packed ring the buffer's id.
    pub head: u16,
    /// Entries of the ring that it takes up: one, except in a packed ring.
    pub slots: u16,
    /// What the device may read.
    pub readable: Buffer,
    /// What the device may write.
    pub writable: Buffer,
}

impl Chain {
    /// Empties it for the next one; its room is kept.
    pub(crate) fn restart(&mut self, head: u16, slots: u16) {
        (self.head, self.slots) = (head, slots);
        self.readable.clear();
        self.writable.clear();
    }

    /// Adds what a descriptor describes.
    pub(crate) fn take(&mut self, gpa: u64, len: u32, write_only: bool) -> Result<(), Broken> {
        let segment = Segment { gpa, len };
        if write_only {
            self.writable.push(segment);
        } else if self.writable.is_empty() {
            self.readable.push(segment);
        } else {
            return Err(Broken::Order);
        }
        let len = self.readable.len() + self.writable.len();
        if len > u64::from(u32::MAX) { Err(Broken::TooLarge) } else { Ok(()) }
    }
}

/// Descriptors in an indirect table of `len` bytes.
pub(crate) fn indirect_entries(len: u32) -> Result<u32, Broken> {
    let entries = len / DESCRIPTOR_BYTES;
    let possible = len.is_multiple_of(DESCRIPTOR_BYTES) && (1..=MAX_DESCRIPTORS).contains(&entries);
    if possible { Ok(entries) } else { Err(Broken::IndirectLength(len)) }
}

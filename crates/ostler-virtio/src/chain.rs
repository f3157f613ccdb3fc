//! Descriptor chains of the split ring (virtio 1.2, section 2.7.5), checked against its rules.

use ostler_memory::GuestMap;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::buffer::{Buffer, Segment};

/// Descriptors of one chain. More than the queue's size is against the rules, but Linux does it
/// with indirect tables; this is the limit other implementations draw.
pub const MAX_DESCRIPTORS: u32 = 1024;

const DESCRIPTOR_BYTES: u32 = size_of::<Descriptor>() as u32;

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
    #[error("a request lacks its header or its status")]
    Request,
}

/// What the driver made available under one head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    /// What the device may read.
    pub readable: Buffer,
    /// What the device may write.
    pub writable: Buffer,
}

/// Where descriptors are read from.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub gpa: u64,
    pub entries: u32,
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

    /// The table that an indirect descriptor refers to.
    fn indirect(descriptor: Descriptor) -> Result<Self, Broken> {
        let len = descriptor.len();
        let entries = len / DESCRIPTOR_BYTES;
        if !len.is_multiple_of(DESCRIPTOR_BYTES) || entries == 0 || entries > MAX_DESCRIPTORS {
            return Err(Broken::IndirectLength(len));
        }
        Ok(Self { gpa: descriptor.addr().0, entries })
    }
}

impl Chain {
    /// Follows the chain that starts at `head` of `table`; `indirect` says that the driver may use
    /// indirect tables.
    pub fn parse(map: &GuestMap, table: Table, head: u16, indirect: bool) -> Result<Self, Broken> {
        let mut chain = Self { head, readable: Buffer::default(), writable: Buffer::default() };
        let first = table.descriptor(map, head)?;
        if !first.refers_to_indirect_table() {
            chain.follow(map, table, first)?;
            return Ok(chain);
        }
        if !indirect || first.has_next() {
            return Err(Broken::Indirect);
        }
        let table = Table::indirect(first)?;
        chain.follow(map, table, table.descriptor(map, 0)?)?;
        Ok(chain)
    }

    fn follow(&mut self, map: &GuestMap, table: Table, mut descriptor: Descriptor) -> Result<(), Broken> {
        for _ in 0..table.entries.min(MAX_DESCRIPTORS) {
            if descriptor.refers_to_indirect_table() {
                // Not inside a table, and not after other descriptors: no driver does either.
                return Err(Broken::Indirect);
            }
            self.take(descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            descriptor = table.descriptor(map, descriptor.next())?;
        }
        Err(Broken::TooLong)
    }

    fn take(&mut self, descriptor: Descriptor) -> Result<(), Broken> {
        let segment = Segment { gpa: descriptor.addr().0, len: descriptor.len() };
        if descriptor.is_write_only() {
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

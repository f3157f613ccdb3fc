//! The facts of a header that the data path needs, checked once.

use crate::{BlockError, Result};

/// Bit 63 of L1 and L2 entries: the refcount is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of L2 entries: a compressed cluster.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of L2 entries of version 3: reads as zeroes.
pub const ZERO: u64 = 1;
/// Bits 9 to 55: an offset in the file.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Subclusters of a cluster with extended L2 entries.
pub const SUBCLUSTERS: u64 = 32;
/// As QEMU limits it: 32 MiB.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// As QEMU limits it: 8 MiB.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// How an image is laid out. Python reads it from the header, or has made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    /// Bytes of the disk.
    pub size: u64,
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub extended_l2: bool,
    /// Compressed clusters are zstd, not deflate.
    pub zstd: bool,
    /// Clusters of the guest are in another file, at the guest's offsets.
    pub external_data: bool,
    pub lazy_refcounts: bool,
    /// The incompatible features as the header has them.
    pub incompatible: u64,
}

impl Layout {
    /// Fails, and names the field, when no image can be laid out like this.
    pub fn check(&self) -> Result<()> {
        let extended_min = if self.extended_l2 { 14 } else { 9 };
        if !(extended_min..=21).contains(&self.cluster_bits) {
            return Err(wrong("cluster_bits", self.cluster_bits.into()));
        }
        if self.refcount_order > 6 {
            return Err(wrong("refcount_order", self.refcount_order.into()));
        }
        if u64::from(self.l1_entries) * 8 > MAX_L1_BYTES || u64::from(self.l1_entries) < self.l1_needed() {
            return Err(wrong("l1_size", self.l1_entries.into()));
        }
        let table_bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if table_bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(wrong("refcount_table_clusters", self.refcount_table_clusters.into()));
        }
        for (name, offset) in
            [("l1_table_offset", self.l1_offset), ("refcount_table_offset", self.refcount_table_offset)]
        {
            if offset & self.in_cluster() != 0 || offset & !OFFSET_MASK != 0 {
                return Err(wrong(name, offset));
            }
        }
        Ok(())
    }

    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The mask of an offset within a cluster.
    pub fn in_cluster(&self) -> u64 {
        self.cluster() - 1
    }

    /// Words (8 bytes) of an L2 entry.
    pub fn entry_words(&self) -> u64 {
        if self.extended_l2 { 2 } else { 1 }
    }

    /// log2 of the entries of an L2 table.
    pub fn l2_bits(&self) -> u32 {
        self.cluster_bits - 3 - u32::from(self.extended_l2)
    }

    /// log2 of the guest bytes that an L2 table maps.
    pub fn l2_reach_bits(&self) -> u32 {
        self.cluster_bits + self.l2_bits()
    }

    /// log2 of what is allocated at once: a cluster or a subcluster.
    pub fn unit_bits(&self) -> u32 {
        self.cluster_bits - if self.extended_l2 { SUBCLUSTERS.ilog2() } else { 0 }
    }

    /// The subclusters, first and end, that a range touches in the cluster where it begins.
    pub fn units_of(&self, offset: u64, len: u64) -> (u64, u64) {
        let within = offset & self.in_cluster();
        let end = (within + len).min(self.cluster());
        (within >> self.unit_bits(), end.div_ceil(1 << self.unit_bits()))
    }

    /// The L1 entries that a disk of this size takes.
    pub fn l1_needed(&self) -> u64 {
        self.size.div_ceil(1 << self.l2_reach_bits())
    }

    /// log2 of the clusters that a refcount block counts.
    pub fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order
    }

    pub fn max_refcount(&self) -> u64 {
        if self.refcount_order == 6 { u64::MAX } else { (1 << (1 << self.refcount_order)) - 1 }
    }

    /// The host clusters, first and last, that a compressed cluster touches, with its offset and
    /// the bytes to read.
    pub fn compressed(&self, word: u64) -> Compressed {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let offset = word & ((1 << offset_bits) - 1);
        let sectors = (word & (COMPRESSED - 1)) >> offset_bits;
        let bytes = (sectors + 1) * 512 - (offset & 511);
        Compressed {
            offset,
            bytes,
            first: offset >> self.cluster_bits,
            last: (offset + bytes - 1) >> self.cluster_bits,
        }
    }

    /// The L2 entry of `bytes` compressed bytes at `offset`.
    pub fn compressed_entry(&self, offset: u64, bytes: u64) -> u64 {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let sectors = ((offset + bytes - 1) >> 9) - (offset >> 9);
        COMPRESSED | sectors << offset_bits | offset
    }
}

/// Where compressed bytes are; the last of `bytes` may be padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    pub offset: u64,
    pub bytes: u64,
    pub first: u64,
    pub last: u64,
}

fn wrong(field: &str, value: u64) -> BlockError {
    BlockError::damaged(format!("{field} is {value:#x}"))
}

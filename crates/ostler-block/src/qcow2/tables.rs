//! Look-ups in the L1 and L2 tables, and changes of them in memory.

use std::collections::BTreeSet;

use super::cache::SliceCache;
use super::entry::Entry;
use super::layout::{COPIED, Layout, OFFSET_MASK};
use super::refcounts::Refcounts;
use crate::disk::{Content, Extent};
use crate::storage::Storage;
use crate::{BlockError, Result};

/// Words of L1 that are written together.
pub const L1_WORDS: usize = 64;

/// A run of guest bytes that is kept in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub content: Content,
    /// Of its first byte; for data. The L2 entry's first word where it is compressed.
    pub host: u64,
    pub len: u64,
    /// Nobody else uses the clusters.
    pub is_owned: bool,
}

impl Mapping {
    pub fn extent(&self) -> Extent {
        let host_offset = (self.content == Content::Data).then_some(self.host);
        Extent { len: self.len, content: self.content, host_offset }
    }
}

/// Clusters of the file that the tables in memory do not use any more.
#[derive(Clone, Copy, Debug)]
pub struct Unlinked {
    pub first: u64,
    pub count: u64,
    /// Give the space back to the host.
    pub punch: bool,
}

/// All tables of an image, as far as they are in memory.
#[derive(Debug)]
pub struct Tables {
    pub layout: Layout,
    pub l1: Vec<u64>,
    /// Groups of [`L1_WORDS`] that differ from the file.
    pub l1_dirty: BTreeSet<usize>,
    pub slices: SliceCache,
    pub refcounts: Refcounts,
    pub unlinked: Vec<Unlinked>,
    /// What failed after its caller was told of success; for whoever settles next.
    pub owed: Option<BlockError>,
    /// Guest clusters that are being allocated: first and end.
    pub in_flight: Vec<(u64, u64)>,
    /// Where the next compressed cluster goes, within a host cluster that has room.
    pub packed_end: u64,
    /// The header says that refcounts are not kept.
    pub is_marked_dirty: bool,
}

impl Tables {
    pub fn open(layout: &Layout, storage: &dyn Storage, cache_bytes: u64) -> Result<Self> {
        let file_bytes = storage.len()?;
        Ok(Self {
            layout: *layout,
            l1: read_l1(layout, storage, layout.l1_offset, layout.l1_entries)?,
            l1_dirty: BTreeSet::new(),
            slices: SliceCache::new(cache_bytes, layout.cluster()),
            refcounts: Refcounts::open(layout, storage, file_bytes)?,
            unlinked: Vec::new(),
            owed: None,
            in_flight: Vec::new(),
            packed_end: 0,
            is_marked_dirty: false,
        })
    }

    /// How the bytes from `guest` on are kept; at least one, at most `limit`.
    pub fn lookup(&mut self, storage: &dyn Storage, guest: u64, limit: u64) -> Result<Mapping> {
        let reach_bits = self.layout.l2_reach_bits();
        let l1_index = guest >> reach_bits;
        if self.l2_table(l1_index)? == 0 {
            return Ok(self.unmapped(guest, limit));
        }
        let index = (guest >> self.layout.cluster_bits) & ((1 << self.layout.l2_bits()) - 1);
        let (slot, mut at) = self.slot(storage, l1_index, index)?;
        let mut unit = self.unit_of(guest);
        let mut mapping = self.mapping_of(slot, at, unit)?;
        let within = guest & ((1 << self.layout.unit_bits()) - 1);
        if mapping.content == Content::Compressed {
            mapping.len = (self.layout.cluster() - (guest & self.layout.in_cluster())).min(limit);
            return Ok(mapping);
        }
        mapping.len -= within;
        mapping.host += if mapping.content == Content::Data { within } else { 0 };
        while mapping.len < limit {
            (at, unit) = self.next_unit(at, unit);
            if at >= self.slices.words(slot).len() as u64 / self.layout.entry_words() {
                break;
            }
            let next = self.mapping_of(slot, at, unit)?;
            if !continues(&mapping, &next) {
                break;
            }
            mapping.len += next.len;
        }
        mapping.len = mapping.len.min(limit);
        Ok(mapping)
    }

    /// The run without L2 tables from `guest` on.
    fn unmapped(&self, guest: u64, limit: u64) -> Mapping {
        let bits = self.layout.l2_reach_bits();
        let next = (guest >> bits) as usize + 1;
        let empty = self.l1.iter().skip(next).take_while(|word| **word & OFFSET_MASK == 0).count();
        let end = if next + empty >= self.l1.len() { u64::MAX } else { ((next + empty) as u64) << bits };
        Mapping { content: Content::Unallocated, host: 0, len: (end - guest).min(limit), is_owned: false }
    }

    fn unit_of(&self, guest: u64) -> u64 {
        (guest & self.layout.in_cluster()) >> self.layout.unit_bits()
    }

    fn next_unit(&self, at: u64, unit: u64) -> (u64, u64) {
        let units = 1 << (self.layout.cluster_bits - self.layout.unit_bits());
        if unit + 1 < units { (at, unit + 1) } else { (at + 1, 0) }
    }

    /// Subcluster `unit` of entry `at` of a slice.
    fn mapping_of(&self, slot: usize, at: u64, unit: u64) -> Result<Mapping> {
        let entry = self.entry_in(slot, at);
        let content = entry.content(&self.layout, unit)?;
        let host = match content {
            Content::Data => entry.host(&self.layout)?.unwrap_or(0) + (unit << self.layout.unit_bits()),
            Content::Compressed => entry.word,
            Content::Unallocated | Content::Zero => 0,
        };
        Ok(Mapping { content, host, len: 1 << self.layout.unit_bits(), is_owned: entry.is_owned() })
    }

    fn entry_in(&self, slot: usize, at: u64) -> Entry {
        let words = self.slices.words(slot);
        let first = (at * self.layout.entry_words()) as usize;
        Entry { word: words[first], bitmap: if self.layout.extended_l2 { words[first + 1] } else { 0 } }
    }

    /// Offset of the L2 table that L1 entry `index` names; 0 without one.
    fn l2_table(&self, index: u64) -> Result<u64> {
        let word = usize::try_from(index).ok().and_then(|at| self.l1.get(at)).copied().unwrap_or(0);
        let offset = word & OFFSET_MASK;
        if offset & self.layout.in_cluster() != 0 {
            return Err(BlockError::damaged(format!("L1 entry {index} is {word:#x}")));
        }
        Ok(offset)
    }

    /// The slice with L2 entry `index` of a table that exists, and the entry's place in it.
    fn slot(&mut self, storage: &dyn Storage, l1_index: u64, index: u64) -> Result<(usize, u64)> {
        let per_slice = self.slices.slice_bytes() / (8 * self.layout.entry_words());
        let table = self.l2_table(l1_index)?;
        let slot = self.slices.load(storage, table + index / per_slice * self.slices.slice_bytes())?;
        Ok((slot, index % per_slice))
    }

    /// The entry of guest cluster `cluster`.
    pub fn entry(&mut self, storage: &dyn Storage, cluster: u64) -> Result<Entry> {
        let l1_index = cluster >> self.layout.l2_bits();
        if self.l2_table(l1_index)? == 0 {
            return Ok(Entry::default());
        }
        let index = cluster & ((1 << self.layout.l2_bits()) - 1);
        let (slot, at) = self.slot(storage, l1_index, index)?;
        Ok(self.entry_in(slot, at))
    }

    /// Changes the entry of guest cluster `cluster`, whose table is writable.
    pub fn set_entry(&mut self, storage: &dyn Storage, cluster: u64, entry: Entry) -> Result<()> {
        let index = cluster & ((1 << self.layout.l2_bits()) - 1);
        let (slot, at) = self.slot(storage, cluster >> self.layout.l2_bits(), index)?;
        let first = (at * self.layout.entry_words()) as usize;
        self.slices.set(slot, first, entry.word);
        if self.layout.extended_l2 {
            self.slices.set(slot, first + 1, entry.bitmap);
        }
        Ok(())
    }

    /// Makes the L2 table of guest cluster `cluster` one of our own: a new one, or a copy of one
    /// that snapshots share.
    pub fn make_table_writable(&mut self, storage: &dyn Storage, cluster: u64) -> Result<()> {
        let index = cluster >> self.layout.l2_bits();
        let old = self.l2_table(index)?;
        let Some(word) = self.l1.get(index as usize).copied() else {
            return Err(BlockError::damaged(format!(
                "l1_size is too small for byte {:#x}",
                cluster << self.layout.cluster_bits
            )));
        };
        if word & COPIED != 0 && old != 0 {
            return Ok(());
        }
        let mut bytes = vec![0; self.layout.cluster() as usize];
        if old != 0 {
            storage.read_bytes(&mut bytes, old)?;
        }
        let (host, _one) = self.refcounts.allocate(storage, 1)?;
        let offset = host << self.layout.cluster_bits;
        storage.write_bytes(&bytes, offset)?;
        self.l1[index as usize] = offset | COPIED;
        self.l1_dirty.insert(index as usize / L1_WORDS);
        if old != 0 {
            self.unlinked.push(Unlinked { first: old >> self.layout.cluster_bits, count: 1, punch: false });
        }
        Ok(())
    }

    /// Notes that what `entry` names is used once less.
    pub fn unlink(&mut self, entry: Entry, punch: bool) -> Result<()> {
        if entry.is_compressed() {
            let at = self.layout.compressed(entry.word);
            self.unlinked.push(Unlinked { first: at.first, count: at.last - at.first + 1, punch: false });
        } else if let Some(host) = entry.host(&self.layout)?
            && !self.layout.external_data
        {
            self.push_unlinked(host >> self.layout.cluster_bits, punch);
        }
        Ok(())
    }

    pub(super) fn push_unlinked(&mut self, cluster: u64, punch: bool) {
        if let Some(last) = self.unlinked.last_mut()
            && last.first + last.count == cluster
            && last.punch == punch
        {
            last.count += 1;
            return;
        }
        self.unlinked.push(Unlinked { first: cluster, count: 1, punch });
    }

    /// Whether the caches hold more than they should.
    pub fn is_crowded(&self) -> bool {
        self.slices.is_crowded() || self.refcounts.is_crowded() || self.unlinked.len() > 4096
    }

    pub fn is_dirty(&self) -> bool {
        self.has_changed_maps() || self.refcounts.is_dirty()
    }

    /// L1 or L2 tables differ from the file.
    pub fn has_changed_maps(&self) -> bool {
        self.slices.is_dirty() || !self.l1_dirty.is_empty()
    }

    /// Fails if a guest's data may not be at `host`: there is a table.
    pub fn check_data_place(&self, host: u64, len: u64) -> Result<()> {
        if self.layout.external_data {
            return Ok(());
        }
        let (table, clusters) = self.refcounts.table();
        let l1_bytes = 8 * self.l1.len() as u64;
        let reserved = [
            ("the header", 0, self.layout.cluster()),
            ("the L1 table", self.layout.l1_offset, l1_bytes),
            ("the refcount table", table, u64::from(clusters) << self.layout.cluster_bits),
        ];
        for (what, start, size) in reserved {
            if host < start + size && start < host.saturating_add(len) {
                return Err(BlockError::damaged(format!("an L2 entry points to {host:#x}, where {what} is")));
            }
        }
        Ok(())
    }
}

fn continues(mapping: &Mapping, next: &Mapping) -> bool {
    mapping.content == next.content
        && mapping.content != Content::Compressed
        && (mapping.content != Content::Data
            || mapping.host + mapping.len == next.host && mapping.is_owned == next.is_owned)
}

/// An L1 table: words in the host's order.
pub fn read_l1(layout: &Layout, storage: &dyn Storage, offset: u64, entries: u32) -> Result<Vec<u64>> {
    let bytes = u64::from(entries) * 8;
    let end = storage.len()?.next_multiple_of(layout.cluster());
    if bytes > super::layout::MAX_L1_BYTES || offset.checked_add(bytes).is_none_or(|last| last > end) {
        return Err(BlockError::damaged(format!("an L1 table of {entries} entries at {offset:#x} is not in the file")));
    }
    let mut raw = vec![0; bytes as usize];
    storage.read_bytes(&mut raw, offset)?;
    Ok(raw.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

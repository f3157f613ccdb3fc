//! Snapshots are made, applied and deleted by one write of one sector: the header's.
//!
//! They change refcounts and COPIED flags all over the image, which have to agree. So nothing of
//! the image is changed in place. Refcount blocks, L2 tables, the L1 table and the refcount table
//! that come out different are written to clusters that are free before and after; then one write
//! names all of them. Whoever dies before it leaves the image as it was, with some free clusters
//! written; whoever dies after it leaves what the old tables took as leaks.

use super::Qcow2;
use super::entry::Entry;
use super::l2::L2Table;
use super::layout::{COPIED, Layout, OFFSET_MASK};
use super::refcounts::Refcounts;
use super::tables::{Tables, Unlinked};
use super::tree::flagged;
use crate::{BlockError, Result};

/// The header from `size` up to `snapshots_offset`, all in its first sector.
const HEADER_FIELDS: (u64, usize) = (24, 48);

/// What the disk and its snapshots are to be.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The disk's L1 table; without, it stays as it is.
    pub l1: Option<&'a [u64]>,
    /// Bytes of the disk.
    pub size: u64,
    /// Where a snapshot of this disk has its L1 table. The clusters are allocated.
    pub copy_at: Option<u64>,
    /// A tree that is used once less, by its L1 table.
    pub gone: &'a [u64],
    /// The table of snapshots: offset and entries. It is in the file.
    pub snapshots: (u64, u32),
    /// What nobody uses afterwards: offset and bytes.
    pub freed: &'a [(u64, u64)],
}

impl Change<'_> {
    /// How many trees are this disk's content which were not before.
    fn uses_more(&self) -> bool {
        self.copy_at.is_some() || self.l1.is_some()
    }

    /// How many L1 tables name a new L2 table.
    fn names(&self) -> u64 {
        1 + u64::from(self.copy_at.is_some())
    }
}

impl Qcow2 {
    /// Makes a change that a crash leaves undone or done: the offset of the disk's L1 table. An error says that it is
    /// undone; what fails once the header names the new tables is reported when the image is next settled.
    pub fn exchange(&self, change: &Change<'_>) -> Result<u64> {
        self.check_write()?;
        let _alone = self.close_gate();
        let mut tables = self.tables();
        if tables.owed.is_some() || tables.is_marked_dirty || tables.has_changed_maps() || !tables.unlinked.is_empty() {
            self.settle_tables(&mut tables)?;
        }
        tables.slices.clear();
        let mut fields = vec![0; HEADER_FIELDS.1];
        self.storage.read_bytes(&mut fields, HEADER_FIELDS.0)?;
        let done = self.try_exchange(&mut tables, change, &fields);
        if done.is_err() {
            // Whatever of it was written: the image is what it was, and so is what is in memory.
            self.storage.write_bytes(&fields, HEADER_FIELDS.0)?;
            tables.unlinked.clear();
            tables.refcounts = Refcounts::reopen(&tables.refcounts, self.storage.as_ref())?;
            return done;
        }
        if let Err(error) = self.free_exchanged(&mut tables, change) {
            // The change is done: whoever asked for it has to know that above all.
            tables.owed = Some(error);
            self.is_unsettled.store(true, std::sync::atomic::Ordering::Release);
        }
        done
    }

    /// Frees what the change left, which no table in the file names any more. That is not waited for:
    /// a crash that undoes it leaves leaks.
    fn free_exchanged(&self, tables: &mut Tables, change: &Change<'_>) -> Result<()> {
        let bits = tables.layout.cluster_bits;
        for &(offset, len) in change.freed.iter().filter(|(_, len)| *len != 0) {
            tables.unlinked.push(Unlinked { first: offset >> bits, count: len.div_ceil(1 << bits), punch: false });
        }
        self.free_unlinked(tables)?;
        tables.refcounts.write_blocks(self.storage.as_ref())
    }

    fn try_exchange(&self, tables: &mut Tables, change: &Change<'_>, fields: &[u8]) -> Result<u64> {
        let (storage, old) = (self.storage.as_ref(), tables.layout);
        let mut layout = old;
        let mut l1 = change.l1.map_or_else(|| tables.l1.clone(), <[u64]>::to_vec);
        (layout.l1_entries, layout.size) = (l1.len() as u32, change.size);
        layout.check()?;
        if change.uses_more() {
            self.count_tree(tables, &l1, 1)?;
        }
        self.count_tree(tables, change.gone, -1)?;
        for word in &mut l1 {
            self.flag_table(tables, word, change.names())?;
        }
        layout.l1_offset = self.place_l1(tables, &l1)?;
        if let Some(offset) = change.copy_at {
            self.write_words(&l1, offset)?;
        }
        let moved = tables.refcounts.relocate(storage)?;
        tables.refcounts.write_blocks(storage)?;
        tables.refcounts.write_table(storage)?;
        self.sync_all()?;
        let fields = patched(fields, &layout, tables.refcounts.table(), change.snapshots);
        self.storage.write_bytes(&fields, HEADER_FIELDS.0)?;
        self.sync()?;
        tables.refcounts.note_home();
        (tables.l1, tables.layout) = (l1, layout);
        self.size.store(layout.size, std::sync::atomic::Ordering::Release);
        let old_l1 = (old.l1_offset >> old.cluster_bits, (8 * u64::from(old.l1_entries)).div_ceil(old.cluster()));
        for (first, count) in moved.into_iter().chain([old_l1]) {
            tables.unlinked.push(Unlinked { first, count, punch: false });
        }
        Ok(layout.l1_offset)
    }

    /// Has an L1 entry and the L2 table it names say who is owned; a table that says otherwise is
    /// replaced by a copy.
    fn flag_table(&self, tables: &mut Tables, word: &mut u64, names: u64) -> Result<()> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        let (offset, bits) = (*word & OFFSET_MASK, layout.cluster_bits);
        if offset == 0 {
            return Ok(());
        }
        let mut table = L2Table::read(&layout, storage, offset, storage.len()?)?;
        let mut changed = Vec::new();
        for (index, entry) in table.used() {
            let flagged = self.flag_entry(tables, entry)?;
            if flagged != entry {
                changed.push((index, flagged));
            }
        }
        let mut cluster = offset >> bits;
        if !changed.is_empty() {
            for (index, entry) in changed {
                table.set(index, entry);
            }
            tables.count_down(storage, cluster, names)?;
            (cluster, _) = tables.refcounts.allocate(storage, 1)?;
            tables.refcounts.set(storage, cluster, names)?;
            table.write(storage, cluster << bits)?;
        }
        *word = flagged(cluster << bits, tables.refcounts.get(storage, cluster)? == 1);
        Ok(())
    }

    fn flag_entry(&self, tables: &mut Tables, entry: Entry) -> Result<Entry> {
        let layout = tables.layout;
        let word = match entry.host(&layout)? {
            _ if entry.is_compressed() => entry.word & !COPIED,
            Some(host) => {
                let count = tables.refcounts.get(self.storage.as_ref(), host >> layout.cluster_bits)?;
                flagged(entry.word, count == 1)
            }
            None => entry.word,
        };
        Ok(Entry { word, ..entry })
    }

    fn place_l1(&self, tables: &mut Tables, l1: &[u64]) -> Result<u64> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        let clusters = (8 * l1.len() as u64).div_ceil(layout.cluster()).max(1);
        let first = tables.refcounts.allocate_contiguous(storage, clusters)?;
        self.write_words(l1, first << layout.cluster_bits)?;
        Ok(first << layout.cluster_bits)
    }

    fn write_words(&self, words: &[u64], offset: u64) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        Ok(self.storage.write_bytes(&bytes, offset)?)
    }
}

/// `size`, `crypt_method`, `l1_size`, `l1_table_offset`, `refcount_table_offset`,
/// `refcount_table_clusters`, `nb_snapshots`, `snapshots_offset`.
fn patched(fields: &[u8], layout: &Layout, (table, clusters): (u64, u32), snapshots: (u64, u32)) -> Vec<u8> {
    let mut fields = fields.to_vec();
    fields[..8].copy_from_slice(&layout.size.to_be_bytes());
    fields[12..16].copy_from_slice(&layout.l1_entries.to_be_bytes());
    fields[16..24].copy_from_slice(&layout.l1_offset.to_be_bytes());
    fields[24..32].copy_from_slice(&table.to_be_bytes());
    fields[32..36].copy_from_slice(&clusters.to_be_bytes());
    fields[36..40].copy_from_slice(&snapshots.1.to_be_bytes());
    fields[40..].copy_from_slice(&snapshots.0.to_be_bytes());
    fields
}

impl Tables {
    /// Counts a cluster `times` less. The last use is not counted off but noted: the cluster is not
    /// free before the file says so.
    pub(super) fn count_down(&mut self, storage: &dyn crate::storage::Storage, cluster: u64, times: u64) -> Result<()> {
        let now = self.refcounts.get(storage, cluster)?;
        match now.checked_sub(times) {
            Some(0) => {
                self.refcounts.set(storage, cluster, 1)?;
                self.push_unlinked(cluster, false);
                Ok(())
            }
            Some(left) => self.refcounts.set(storage, cluster, left),
            None => {
                Err(BlockError::damaged(format!("the refcount of cluster {cluster:#x} is {now}, but it is in use")))
            }
        }
    }
}

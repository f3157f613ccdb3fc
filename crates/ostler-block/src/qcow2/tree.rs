//! What Python builds snapshots, resizes and bitmaps from: whole trees of tables at once, and
//! clusters for tables of its own.
//!
//! Each of these settles the image first and closes the gate, so that the file is what counts.

use super::Qcow2;
use super::entry::Entry;
use super::l2::L2Table;
use super::layout::{COPIED, Layout, OFFSET_MASK};
use super::tables::{L1_WORDS, Tables, Unlinked, read_l1};
use crate::Result;
use crate::storage::Storage;

impl Qcow2 {
    fn alone<T>(&self, act: impl FnOnce(&mut Tables) -> Result<T>) -> Result<T> {
        self.check_write()?;
        let _alone = self.close_gate();
        let mut tables = self.tables();
        self.settle_tables(&mut tables)?;
        tables.slices.clear();
        let done = act(&mut tables)?;
        self.settle_tables(&mut tables)?;
        Ok(done)
    }

    /// The L1 table of the disk, as it is in memory.
    pub fn l1(&self) -> Vec<u64> {
        self.tables().l1.clone()
    }

    /// An L1 table of the file.
    pub fn read_l1_at(&self, offset: u64, entries: u32) -> Result<Vec<u64>> {
        read_l1(&self.layout(), self.storage.as_ref(), offset, entries)
    }

    /// Sets and clears the COPIED flags of the disk's tables by the refcounts: how many changed.
    pub fn refresh_flags(&self) -> Result<u64> {
        self.alone(|tables| {
            let before = self.count_flags(tables, false)?;
            self.update_flags(tables)?;
            Ok(before)
        })
    }

    /// Clusters in a row for `len` bytes of Python's own, counted once: the offset.
    pub fn allocate(&self, len: u64) -> Result<u64> {
        self.check_write()?;
        let _gate = self.enter();
        let mut tables = self.tables();
        let clusters = len.div_ceil(tables.layout.cluster()).max(1);
        let first = tables.refcounts.allocate_contiguous(self.storage.as_ref(), clusters)?;
        let offset = first << tables.layout.cluster_bits;
        tables.check_data_place(offset, clusters << tables.layout.cluster_bits)?;
        Ok(offset)
    }

    /// Frees the clusters of `len` bytes at `offset` once what refers to them is not in the file.
    pub fn release(&self, offset: u64, len: u64) -> Result<()> {
        self.check_write()?;
        let _gate = self.enter();
        let mut tables = self.tables();
        let bits = tables.layout.cluster_bits;
        let (first, count) = (offset >> bits, len.div_ceil(1 << bits));
        tables.unlinked.push(Unlinked { first, count, punch: false });
        self.is_unsettled.store(true, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// Uses the L1 table at `offset` from now on; it is in the file already.
    pub fn use_l1(&self, offset: u64, entries: u32, size: u64) -> Result<()> {
        self.alone(|tables| {
            let mut layout = tables.layout;
            (layout.l1_offset, layout.l1_entries, layout.size) = (offset, entries, size);
            layout.check()?;
            tables.l1 = read_l1(&layout, self.storage.as_ref(), offset, entries)?;
            tables.layout = layout;
            self.size.store(size, std::sync::atomic::Ordering::Release);
            Ok(())
        })
    }

    /// Makes the whole disk unallocated: what is behind it shows through.
    pub fn unmap_all(&self) -> Result<()> {
        self.alone(|tables| {
            let old = tables.l1.clone();
            tables.l1.fill(0);
            tables.l1_dirty.extend(0..old.len().div_ceil(L1_WORDS));
            self.settle_tables(tables)?;
            self.count_tree(tables, &old, -1)
        })
    }

    /// Sets refcounts as a check found them to be: first cluster, how many, and the count.
    pub fn set_refcounts(&self, runs: &[(u64, u64, u64)]) -> Result<()> {
        self.alone(|tables| {
            for &(first, count, value) in runs {
                for cluster in first..first + count {
                    tables.refcounts.set(self.storage.as_ref(), cluster, value)?;
                }
            }
            Ok(())
        })
    }

    pub(super) fn count_tree(&self, tables: &mut Tables, l1: &[u64], delta: i64) -> Result<()> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        let file_end = storage.len()?;
        for &word in l1.iter().filter(|word| **word & OFFSET_MASK != 0) {
            let offset = word & OFFSET_MASK;
            // Most clusters are in a row with the one before.
            let mut run = (0, 0);
            for (_, entry) in L2Table::read(&layout, storage, offset, file_end)?.used() {
                let (first, count) = clusters_of(&layout, entry)?;
                if count != 0 && run.0 + run.1 == first && !entry.is_compressed() {
                    run.1 += count;
                } else if count != 0 {
                    count_run(tables, storage, run.0, run.1, delta)?;
                    run = (first, count);
                }
            }
            count_run(tables, storage, run.0, run.1, delta)?;
            count_run(tables, storage, offset >> layout.cluster_bits, 1, delta)?;
        }
        Ok(())
    }

    /// Brings the COPIED flags of the disk's tables up to date; refcounts are as the file has them.
    fn update_flags(&self, tables: &mut Tables) -> Result<()> {
        let changed = self.count_flags(tables, true)?;
        if changed != 0 {
            let bytes: Vec<u8> = tables.l1.iter().flat_map(|word| word.to_be_bytes()).collect();
            self.storage.write_bytes(&bytes, tables.layout.l1_offset)?;
            self.sync()?;
        }
        tables.slices.clear();
        Ok(())
    }

    /// How many COPIED flags of the disk's tables are wrong; with `fix` they are corrected.
    pub(super) fn count_flags(&self, tables: &mut Tables, fix: bool) -> Result<u64> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        let (bits, file_end) = (layout.cluster_bits, storage.len()?);
        let mut wrong = 0;
        for index in 0..tables.l1.len() {
            let word = tables.l1[index];
            let offset = word & OFFSET_MASK;
            if offset == 0 || offset & layout.in_cluster() != 0 || offset >= file_end {
                continue;
            }
            let right = flagged(word, tables.refcounts.get(storage, offset >> bits)? == 1);
            wrong += u64::from(right != word);
            if fix {
                tables.l1[index] = right;
            }
            wrong += self.count_table_flags(tables, offset, file_end, fix)?;
        }
        Ok(wrong)
    }

    fn count_table_flags(&self, tables: &mut Tables, offset: u64, file_end: u64, fix: bool) -> Result<u64> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        let mut table = L2Table::read(&layout, storage, offset, file_end)?;
        let mut corrected = Vec::new();
        for (index, entry) in table.used() {
            let right = if entry.is_compressed() {
                entry.word & !COPIED
            } else if layout.external_data {
                entry.word
            } else if let Ok(Some(host)) = entry.host(&layout) {
                flagged(entry.word, tables.refcounts.get(storage, host >> layout.cluster_bits)? == 1)
            } else {
                entry.word
            };
            if right != entry.word {
                corrected.push((index, Entry { word: right, ..entry }));
            }
        }
        if fix && !corrected.is_empty() {
            for &(index, entry) in &corrected {
                table.set(index, entry);
            }
            table.write(storage, offset)?;
        }
        Ok(corrected.len() as u64)
    }
}

pub(super) fn flagged(word: u64, is_owned: bool) -> u64 {
    if is_owned { word | COPIED } else { word & !COPIED }
}

/// The clusters of this file that an entry refers to: the first and how many.
fn clusters_of(layout: &Layout, entry: Entry) -> Result<(u64, u64)> {
    if entry.is_compressed() {
        let at = layout.compressed(entry.word);
        return Ok((at.first, at.last - at.first + 1));
    }
    match entry.host(layout)? {
        Some(host) if !layout.external_data => Ok((host >> layout.cluster_bits, 1)),
        _ => Ok((0, 0)),
    }
}

fn count_run(tables: &mut Tables, storage: &dyn Storage, first: u64, count: u64, delta: i64) -> Result<()> {
    if delta > 0 {
        return tables.refcounts.add(storage, first, count, delta);
    }
    (first..first + count).try_for_each(|cluster| tables.count_down(storage, cluster, delta.unsigned_abs()))
}

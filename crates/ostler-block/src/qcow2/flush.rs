//! Tables on their way to the file, in the order that survives a crash at any instant.
//!
//! 1. refcount blocks, and all data written so far; wait until that is stable;
//! 2. the refcount table, if it changed; wait; the header, if the table moved; wait;
//! 3. L2 and L1 tables; wait;
//! 4. what those tables do not use any more is free: counted in memory, written the next time.
//!
//! So the file never refers to a cluster that it does not count, and never counts less than it
//! refers to. What a crash leaves are counts that are too high: leaks.

use std::sync::atomic::Ordering;

use super::Qcow2;
use super::tables::{L1_WORDS, Tables, Unlinked};
use crate::Result;

/// Offset in the header of the refcount table's offset and clusters.
pub(super) const HEADER_REFCOUNT_TABLE: u64 = 48;
/// Offset in the header of the incompatible features.
const HEADER_INCOMPATIBLE: u64 = 72;
/// Bit 0 of the incompatible features: refcounts are not kept.
const DIRTY: u64 = 1;

impl Qcow2 {
    /// Everything written is stable afterwards.
    pub(super) fn flush_all(&self) -> Result<()> {
        let is_settled = !self.is_unsettled.load(Ordering::Acquire);
        if self.options.readonly || is_settled && !self.tables().is_dirty() {
            return Ok(());
        }
        let _alone = self.close_gate();
        self.commit(&mut self.tables())
    }

    /// Notes whether what was changed fills the caches.
    pub(super) fn note_crowding(&self, tables: &Tables) {
        if tables.is_crowded() {
            self.is_crowded.store(true, Ordering::Relaxed);
        }
    }

    /// Writes the tables when the caches hold too much; the gate is not entered.
    pub(super) fn relieve(&self) -> Result<()> {
        if self.is_crowded.load(Ordering::Relaxed) {
            let _alone = self.close_gate();
            self.commit(&mut self.tables())?;
        }
        Ok(())
    }

    /// Leaves nothing in memory that the file does not have. The image can be closed then.
    pub fn settle(&self) -> Result<()> {
        if self.options.readonly {
            return Ok(());
        }
        let _alone = self.close_gate();
        let mut tables = self.tables();
        self.settle_tables(&mut tables)
    }

    pub(super) fn settle_tables(&self, tables: &mut Tables) -> Result<()> {
        while self.is_unsettled.load(Ordering::Acquire)
            || tables.is_dirty()
            || !tables.unlinked.is_empty()
            || !tables.refcounts.replaced.is_empty()
        {
            self.commit(tables)?;
            if tables.layout.lazy_refcounts && tables.unlinked.is_empty() {
                self.write_refcounts(tables)?;
            }
        }
        self.unmark_dirty(tables)
    }

    /// One round of writing; the gate is closed.
    fn commit(&self, tables: &mut Tables) -> Result<()> {
        self.is_unsettled.store(false, Ordering::Release);
        self.is_crowded.store(false, Ordering::Relaxed);
        let done = self.try_commit(tables);
        if done.is_err() {
            self.is_unsettled.store(true, Ordering::Release);
        }
        done
    }

    fn try_commit(&self, tables: &mut Tables) -> Result<()> {
        if let Some(error) = tables.owed.take() {
            return Err(error);
        }
        if tables.layout.lazy_refcounts {
            self.sync_all()?;
        } else {
            self.write_refcounts(tables)?;
        }
        if tables.slices.is_dirty() || !tables.l1_dirty.is_empty() {
            tables.slices.write(self.storage.as_ref())?;
            self.write_l1(tables)?;
            self.sync()?;
        }
        self.free_unlinked(tables)
    }

    /// Steps 1 and 2: refcounts, together with the data, are stable afterwards.
    fn write_refcounts(&self, tables: &mut Tables) -> Result<()> {
        let storage = self.storage.as_ref();
        tables.refcounts.write_blocks(storage)?;
        self.sync_all()?;
        if tables.refcounts.is_table_dirty() {
            tables.refcounts.write_table(storage)?;
            self.sync()?;
            if tables.refcounts.has_moved() {
                let (offset, clusters) = tables.refcounts.table();
                let mut field = offset.to_be_bytes().to_vec();
                field.extend(clusters.to_be_bytes());
                storage.write_bytes(&field, HEADER_REFCOUNT_TABLE)?;
                self.sync()?;
                tables.refcounts.note_home();
                for (first, count) in std::mem::take(&mut tables.refcounts.replaced) {
                    tables.unlinked.push(Unlinked { first, count, punch: false });
                }
            }
        }
        Ok(())
    }

    fn write_l1(&self, tables: &mut Tables) -> Result<()> {
        // A group that could not be written stays dirty.
        while let Some(&group) = tables.l1_dirty.first() {
            let first = group * L1_WORDS;
            let words = &tables.l1[first..tables.l1.len().min(first + L1_WORDS)];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            self.storage.write_bytes(&bytes, tables.layout.l1_offset + 8 * first as u64)?;
            tables.l1_dirty.remove(&group);
        }
        Ok(())
    }

    /// Step 4. What was unlinked can be allocated from now on.
    pub(super) fn free_unlinked(&self, tables: &mut Tables) -> Result<()> {
        let mut runs = std::mem::take(&mut tables.unlinked).into_iter();
        let freed = runs.try_for_each(|run| self.free_run(tables, &run));
        // One that failed may be counted off in part, and is left as a leak; those after it have their turn yet.
        tables.unlinked.extend(runs);
        freed
    }

    fn free_run(&self, tables: &mut Tables, run: &Unlinked) -> Result<()> {
        self.forget_unpacked();
        let packing = tables.packed_end >> tables.layout.cluster_bits;
        if tables.packed_end != 0 && (run.first..run.first + run.count).contains(&packing) {
            tables.packed_end = 0;
        }
        tables.refcounts.add(self.storage.as_ref(), run.first, run.count, -1)?;
        if run.punch { self.punch(tables, run) } else { Ok(()) }
    }

    /// Gives the space of clusters that nobody uses any more back to the host.
    fn punch(&self, tables: &mut Tables, run: &Unlinked) -> Result<()> {
        let bits = tables.layout.cluster_bits;
        let mut first = run.first;
        let end = run.first + run.count;
        while first < end {
            let mut len = 0;
            while first + len < end && tables.refcounts.get(self.storage.as_ref(), first + len)? == 0 {
                len += 1;
            }
            if len != 0 {
                self.storage.discard(first << bits, len << bits)?;
            }
            first += len + 1;
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<()> {
        if self.options.is_unsafe { Ok(()) } else { Ok(self.storage.flush()?) }
    }

    pub(super) fn sync_all(&self) -> Result<()> {
        if self.layout_external() && !self.options.is_unsafe {
            self.data.flush()?;
        }
        self.sync()
    }

    fn layout_external(&self) -> bool {
        !std::sync::Arc::ptr_eq(&self.storage, &self.data)
    }

    /// Before the first change of an image with lazy refcounts: says so in the header.
    pub(super) fn mark_dirty(&self) -> Result<()> {
        if !self.shape.lazy_refcounts {
            return Ok(());
        }
        let mut tables = self.tables();
        if tables.is_marked_dirty {
            return Ok(());
        }
        let features = tables.layout.incompatible | DIRTY;
        self.storage.write_bytes(&features.to_be_bytes(), HEADER_INCOMPATIBLE)?;
        self.sync()?;
        tables.is_marked_dirty = true;
        Ok(())
    }

    fn unmark_dirty(&self, tables: &mut Tables) -> Result<()> {
        if tables.is_marked_dirty {
            let features = tables.layout.incompatible & !DIRTY;
            self.storage.write_bytes(&features.to_be_bytes(), HEADER_INCOMPATIBLE)?;
            self.sync()?;
            tables.is_marked_dirty = false;
        }
        Ok(())
    }
}

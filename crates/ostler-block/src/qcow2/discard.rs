//! Discards and zeroes: whole clusters in the tables, the rest by writing.

use super::Qcow2;
use super::entry::{Entry, units};
use super::layout::{SUBCLUSTERS, ZERO};
use super::tables::{Mapping, Tables};
use crate::Result;
use crate::disk::Content;
use crate::pieces::Source;

/// Clusters that are changed while the tables are held; others get a turn in between.
const BATCH: u64 = 4096;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

impl Qcow2 {
    /// Makes a range read as zeroes; the gate is entered.
    pub(super) fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let layout = self.layout();
        let end = offset + len;
        // The last cluster of a disk may be cut off by its end: it is whole then.
        let whole_end = if end == layout.size { end.next_multiple_of(layout.cluster()) } else { end };
        let first = offset.next_multiple_of(layout.cluster());
        let last = whole_end & !layout.in_cluster();
        if first >= last {
            return self.zero_part(offset, len);
        }
        self.zero_part(offset, first - offset)?;
        self.for_each_run(first, last, |tables, at, mapping| self.zero_run(tables, at, mapping, unmap))?;
        self.zero_part(last, end.saturating_sub(last))
    }

    /// Zeroes less than a cluster: subclusters in the table, the rest written.
    fn zero_part(&self, offset: u64, len: u64) -> Result<()> {
        let layout = self.layout();
        let unit = 1 << layout.unit_bits();
        let (first, last) = (offset.next_multiple_of(unit), (offset + len) & !(unit - 1));
        if layout.extended_l2 && first < last && !layout.external_data {
            self.write_zero_bytes(offset, first - offset)?;
            self.zero_units(first, last)?;
            return self.write_zero_bytes(last, offset + len - last);
        }
        self.write_zero_bytes(offset, len)
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> Result<()> {
        while len != 0 {
            let piece = len.min(ZEROES.len() as u64);
            if !self.is_zero(offset, piece)? {
                self.write_entered(&Source::new(&ZEROES[..piece as usize]), offset)?;
            }
            (offset, len) = (offset + piece, len - piece);
        }
        Ok(())
    }

    /// Subclusters `offset..end`, which may be in two clusters, but not be a whole one.
    fn zero_units(&self, offset: u64, end: u64) -> Result<()> {
        let layout = self.layout();
        let mut at = offset;
        while at < end {
            self.mark_dirty()?;
            let cluster = at >> layout.cluster_bits;
            let (first, last) = layout.units_of(at, end - at);
            let mut tables = self.await_landing(self.tables(), cluster, cluster + 1);
            let old = tables.entry(self.storage.as_ref(), cluster)?;
            if old.is_compressed() {
                drop(tables);
                let here = (layout.cluster() - (at & layout.in_cluster())).min(end - at);
                self.write_zero_bytes(at, here)?;
            } else {
                let zeroed = units(first, last);
                let bitmap = old.bitmap & !zeroed | zeroed << SUBCLUSTERS;
                tables.make_table_writable(self.storage.as_ref(), cluster)?;
                tables.set_entry(self.storage.as_ref(), cluster, Entry { word: old.word, bitmap })?;
            }
            at = (cluster + 1) << layout.cluster_bits;
        }
        Ok(())
    }

    /// Gives up whole clusters of a range; the gate is entered.
    pub(super) fn discard_entered(&self, offset: u64, len: u64) -> Result<()> {
        let layout = self.layout();
        let end =
            if offset + len == layout.size { (offset + len).next_multiple_of(layout.cluster()) } else { offset + len };
        let (first, last) = (offset.next_multiple_of(layout.cluster()), end & !layout.in_cluster());
        if layout.external_data || first >= last {
            return Ok(());
        }
        self.for_each_run(first, last, |tables, at, mapping| {
            if mapping.content == Content::Unallocated || mapping.content == Content::Zero && self.backing.is_some() {
                return Ok(());
            }
            self.replace_run(tables, at, mapping, true)
        })
    }

    /// Calls `act` for each run of clusters of one kind, with the tables held.
    fn for_each_run(&self, first: u64, end: u64, act: impl Fn(&mut Tables, u64, &Mapping) -> Result<()>) -> Result<()> {
        let bits = self.layout().cluster_bits;
        let mut at = first;
        while at < end {
            self.mark_dirty()?;
            let limit = end - at;
            let mut tables = self.tables();
            let mut mapping = tables.lookup(self.storage.as_ref(), at, limit)?;
            if mapping.content != Content::Unallocated || self.backing.is_some() {
                mapping.len = mapping.len.min(BATCH << bits);
            }
            if tables.layout.extended_l2 && mapping.content != Content::Unallocated {
                mapping.len = mapping.len.min(1 << bits);
            }
            if mapping.len < 1 << bits {
                // Its subclusters are of several kinds, so some of them hold something.
                mapping.content = Content::Data;
            }
            mapping.len = (mapping.len & !((1 << bits) - 1)).max(1 << bits).min(limit);
            let (from, to) = (at >> bits, (at + mapping.len) >> bits);
            if tables.in_flight.iter().any(|&(theirs, theirs_end)| theirs < to && from < theirs_end) {
                drop(self.await_landing(tables, from, to));
                continue;
            }
            act(&mut tables, at, &mapping)?;
            self.note_crowding(&tables);
            at += mapping.len;
        }
        Ok(())
    }

    fn zero_run(&self, tables: &mut Tables, at: u64, mapping: &Mapping, unmap: bool) -> Result<()> {
        let layout = tables.layout;
        if layout.external_data {
            return self.zero_external(tables, at, mapping.len, unmap);
        }
        if !layout.extended_l2 {
            let is_zero_already = match mapping.content {
                Content::Unallocated => self.backing.is_none(),
                Content::Zero => !unmap,
                Content::Data | Content::Compressed => false,
            };
            if is_zero_already {
                return Ok(());
            }
        } else if mapping.content == Content::Unallocated && self.backing.is_none() && self.is_bare(tables, at)? {
            return Ok(());
        }
        if layout.version < 3 && self.backing.is_some() {
            return self.zero_by_writing(tables, at, mapping);
        }
        if unmap || !mapping.is_owned || mapping.content == Content::Compressed {
            return self.replace_run(tables, at, mapping, unmap);
        }
        self.keep_run(tables, at, mapping)
    }

    fn is_bare(&self, tables: &mut Tables, at: u64) -> Result<bool> {
        let entry = tables.entry(self.storage.as_ref(), at >> tables.layout.cluster_bits)?;
        Ok(entry == Entry::default())
    }

    /// Version 2 cannot hide a backing image but by data. The tables are held, so the clusters are
    /// allocated here, one by one.
    fn zero_by_writing(&self, tables: &mut Tables, at: u64, mapping: &Mapping) -> Result<()> {
        let (storage, bits) = (self.storage.as_ref(), tables.layout.cluster_bits);
        for cluster in at >> bits..(at + mapping.len) >> bits {
            tables.make_table_writable(storage, cluster)?;
            let old = tables.entry(storage, cluster)?;
            let (host, _one) = tables.refcounts.allocate(storage, 1)?;
            tables.check_data_place(host << bits, 1 << bits)?;
            self.data.write_zeroes(host << bits, 1 << bits, false)?;
            tables.unlink(old, true)?;
            tables.set_entry(storage, cluster, Entry::data(host << bits))?;
        }
        Ok(())
    }

    /// Entries without a host cluster for a run, which read as zeroes.
    fn replace_run(&self, tables: &mut Tables, at: u64, mapping: &Mapping, punch: bool) -> Result<()> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        let backed = self.backing.as_ref().map_or(0, |backing| backing.size());
        let zero = if layout.extended_l2 {
            Entry { word: 0, bitmap: !0 << SUBCLUSTERS }
        } else {
            Entry { word: ZERO, bitmap: 0 }
        };
        for cluster in at >> layout.cluster_bits..(at + mapping.len) >> layout.cluster_bits {
            let hides = cluster << layout.cluster_bits < backed;
            if hides && layout.version < 3 {
                continue;
            }
            let new = if hides { zero } else { Entry::default() };
            let old = tables.entry(storage, cluster)?;
            if old == new {
                continue;
            }
            tables.make_table_writable(storage, cluster)?;
            tables.unlink(old, punch && self.options.punch_holes)?;
            tables.set_entry(storage, cluster, new)?;
        }
        Ok(())
    }

    /// Zero entries for a run that keep their host clusters.
    fn keep_run(&self, tables: &mut Tables, at: u64, mapping: &Mapping) -> Result<()> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        for cluster in at >> layout.cluster_bits..(at + mapping.len) >> layout.cluster_bits {
            tables.make_table_writable(storage, cluster)?;
            let mut entry = tables.entry(storage, cluster)?;
            if layout.version < 3 {
                tables.unlink(entry, true)?;
                entry = Entry::default();
            } else if layout.extended_l2 {
                entry.bitmap = !0 << SUBCLUSTERS;
            } else {
                entry.word |= ZERO;
            }
            tables.set_entry(storage, cluster, entry)?;
        }
        Ok(())
    }

    /// The data file holds all that is mapped, so it holds the zeroes, too.
    fn zero_external(&self, tables: &mut Tables, at: u64, len: u64, unmap: bool) -> Result<()> {
        let (storage, layout) = (self.storage.as_ref(), tables.layout);
        self.data.write_zeroes(at, len.min(layout.size - at), unmap)?;
        for cluster in at >> layout.cluster_bits..(at + len) >> layout.cluster_bits {
            tables.make_table_writable(storage, cluster)?;
            let mut entry = Entry::data(cluster << layout.cluster_bits);
            entry.bitmap = if layout.extended_l2 { units(0, SUBCLUSTERS) } else { 0 };
            tables.set_entry(storage, cluster, entry)?;
        }
        Ok(())
    }
}

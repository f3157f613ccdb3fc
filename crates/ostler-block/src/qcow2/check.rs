//! Who refers to each cluster, held against the refcounts. Finds; Python decides what to repair.

use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeMap, BTreeSet};

use super::Qcow2;
use super::entry::Entry;
use super::l2::L2Table;
use super::layout::{Layout, MAX_REFCOUNT_TABLE_BYTES, OFFSET_MASK};
use super::refcounts::{self, Refcounts};
use super::tables::{Tables, read_l1};
use crate::disk::Content;
use crate::storage::Storage;
use crate::{BlockError, Result};

const CHUNK: usize = 512;
/// 1 GiB of counters; an image that needs more is laid out to be hostile.
const MAX_CHUNKS: usize = 1 << 19;
/// Of new refcount blocks, which are made in memory: those of 32 TiB in clusters of 64 KiB.
const MAX_BLOCK_BYTES: u64 = 1 << 30;
/// Where `refcount_order` ends in the header of version 3.
const HEADER_REFCOUNT_ORDER_END: usize = 100;
const MAX_MESSAGES: usize = 200;

/// A run of clusters whose refcount is not what refers to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    pub first: u64,
    pub count: u64,
    pub refcount: u64,
    pub references: u64,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    pub differences: Vec<Difference>,
    /// COPIED flags that do not agree with the refcounts.
    pub wrong_flags: u64,
    /// Entries that point where nothing can be: offset of the table, index.
    pub bad_l2: Vec<(u64, u64)>,
    /// Entries of the disk's L1 table that point where nothing can be.
    pub bad_l1: Vec<u64>,
    /// Entries of the refcount table that point where nothing can be.
    pub bad_blocks: Vec<u64>,
    /// Clusters in use that no refcount block counts.
    pub uncounted: u64,
    /// References to clusters of which the file has nothing: it was cut off.
    pub behind_end: u64,
    /// One line for each of the first bad entries.
    pub messages: Vec<String>,
    pub allocated: u64,
    pub compressed: u64,
    pub fragmented: u64,
    pub image_end: u64,
}

/// Bytes and the offset where they go.
type Placed = (u64, Vec<u8>);

/// References to clusters, sparse.
#[derive(Debug, Default)]
struct References {
    chunks: BTreeMap<u64, Box<[u32; CHUNK]>>,
}

impl References {
    fn add(&mut self, first: u64, count: u64) -> Result<()> {
        for cluster in first..first + count {
            let counter = &mut self.chunk(cluster / CHUNK as u64)?[(cluster % CHUNK as u64) as usize];
            *counter = counter.saturating_add(1);
        }
        Ok(())
    }

    fn chunk(&mut self, number: u64) -> Result<&mut [u32; CHUNK]> {
        let count = self.chunks.len();
        match self.chunks.entry(number) {
            Occupied(chunk) => Ok(chunk.into_mut()),
            Vacant(_) if count >= MAX_CHUNKS => {
                Err(BlockError::damaged("its tables refer to clusters all over the address space"))
            }
            Vacant(place) => Ok(place.insert(Box::new([0; CHUNK]))),
        }
    }

    /// How often each of `count` clusters is referred to.
    fn run(&self, first: u64, count: u64) -> impl Iterator<Item = u64> + '_ {
        let mut chunk = (u64::MAX, None);
        (first..first + count).map(move |cluster| {
            let number = cluster / CHUNK as u64;
            if chunk.0 != number {
                chunk = (number, self.chunks.get(&number));
            }
            chunk.1.map_or(0, |counters| counters[(cluster % CHUNK as u64) as usize].into())
        })
    }

    fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get(&(cluster / CHUNK as u64));
        chunk.map_or(0, |counters| counters[(cluster % CHUNK as u64) as usize].into())
    }

    /// All clusters that something refers to.
    fn clusters(&self) -> impl Iterator<Item = u64> {
        self.chunks.iter().flat_map(|(chunk, counters)| {
            let used = counters.iter().enumerate().filter(|(_, count)| **count != 0);
            used.map(move |(at, _)| chunk * CHUNK as u64 + at as u64)
        })
    }

    fn last(&self) -> Option<u64> {
        self.clusters().max()
    }
}

struct Check<'a> {
    layout: Layout,
    storage: &'a dyn Storage,
    file_end: u64,
    found: References,
    report: Report,
    /// The guest's last host cluster, to tell fragments.
    previous: u64,
}

impl Qcow2 {
    /// Checks all references. `snapshots` are their L1 tables (offset, entries), `others` are places
    /// that Python knows to be in use (offset, bytes): the snapshot table, bitmaps.
    pub fn check(&self, snapshots: &[(u64, u32)], others: &[(u64, u64)]) -> Result<Report> {
        let _alone = self.close_gate();
        let mut tables = self.tables();
        if !self.options.readonly {
            self.settle_tables(&mut tables)?;
        }
        let mut check = self.start_check(&tables)?;
        check.refcount_structures(&tables)?;
        check.disk_and_snapshots(&tables, snapshots, others)?;
        check.compare(&mut tables)?;
        check.report.wrong_flags = self.count_flags(&mut tables, false)?;
        check.report.image_end = check.image_end();
        Ok(check.report)
    }

    fn start_check(&self, tables: &Tables) -> Result<Check<'_>> {
        Ok(Check {
            layout: tables.layout,
            storage: self.storage.as_ref(),
            file_end: self.storage.len()?,
            found: References::default(),
            report: Report::default(),
            previous: 0,
        })
    }

    /// New refcounts for all that is in use, behind the end of the file; the old ones are not read.
    /// They may be of another width, 2^`order` bits.
    pub fn rebuild_refcounts(&self, snapshots: &[(u64, u32)], others: &[(u64, u64)], order: Option<u32>) -> Result<()> {
        self.check_write()?;
        let _alone = self.close_gate();
        let mut tables = self.tables();
        let mut check = self.start_check(&tables)?;
        check.layout.refcount_order = order.unwrap_or(tables.layout.refcount_order);
        check.layout.check()?;
        check.disk_and_snapshots(&tables, snapshots, others)?;
        let layout = check.layout;
        if order.is_some() {
            check.refuse_uncountable()?;
        }
        let behind = check.found.last().map_or(0, |last| last + 1);
        let start = behind.max(check.file_end.div_ceil(layout.cluster()));
        let (table, clusters, blocks) = check.place_refcounts(start)?;
        for (offset, bytes) in blocks {
            self.storage.write_bytes(&bytes, offset)?;
        }
        self.sync()?;
        self.name_refcounts(table, clusters, order)?;
        tables.layout.refcount_order = layout.refcount_order;
        (tables.layout.refcount_table_offset, tables.layout.refcount_table_clusters) = (table, clusters);
        tables.refcounts = Refcounts::open(&tables.layout, self.storage.as_ref(), self.storage.len()?)?;
        tables.slices.clear();
        Ok(())
    }

    /// Has the header name a refcount table, and the width of refcounts, in one write.
    fn name_refcounts(&self, table: u64, clusters: u32, order: Option<u32>) -> Result<()> {
        let start = super::flush::HEADER_REFCOUNT_TABLE;
        let mut fields = vec![0; if order.is_some() { HEADER_REFCOUNT_ORDER_END - start as usize } else { 12 }];
        self.storage.read_bytes(&mut fields, start)?;
        fields[..8].copy_from_slice(&table.to_be_bytes());
        fields[8..12].copy_from_slice(&clusters.to_be_bytes());
        if let Some(order) = order {
            let at = fields.len() - 4;
            fields[at..].copy_from_slice(&order.to_be_bytes());
        }
        self.storage.write_bytes(&fields, start)?;
        self.sync()
    }

    /// Makes an entry of an L2 table unallocated.
    pub fn clear_l2_entry(&self, table: u64, index: u64) -> Result<()> {
        self.check_write()?;
        let _alone = self.close_gate();
        let mut tables = self.tables();
        let bytes = 8 * tables.layout.entry_words();
        self.storage.write_bytes(&[0; 16][..bytes as usize], table + index * bytes)?;
        tables.slices.clear();
        Ok(())
    }

    /// Makes an entry of the disk's L1 table empty.
    pub fn clear_l1_entry(&self, index: u64) -> Result<()> {
        self.check_write()?;
        let _alone = self.close_gate();
        let mut tables = self.tables();
        let offset = tables.layout.l1_offset + 8 * index;
        if let Some(word) = tables.l1.get_mut(index as usize) {
            *word = 0;
        }
        Ok(self.storage.write_bytes(&[0; 8], offset)?)
    }
}

fn clusters(layout: &Layout, offset: u64, bytes: u64) -> u64 {
    (offset + bytes).div_ceil(layout.cluster()) - (offset >> layout.cluster_bits)
}

impl Check<'_> {
    /// Fails if refcounts of this width cannot count what is in use.
    fn refuse_uncountable(&self) -> Result<()> {
        let most = self.found.clusters().map(|cluster| self.found.get(cluster)).max().unwrap_or(0);
        if most <= self.layout.max_refcount() {
            return Ok(());
        }
        let bits = 1 << self.layout.refcount_order;
        Err(BlockError::Refused(format!(
            "a cluster is used {most} times, which refcounts of {bits} bits cannot count; delete snapshots"
        )))
    }

    /// Behind the last cluster that is in use and in the file.
    fn image_end(&self) -> u64 {
        let bits = self.layout.cluster_bits;
        let in_file = self.found.clusters().filter(|cluster| cluster << bits < self.file_end);
        in_file.max().map_or(0, |last| (last + 1) << bits)
    }

    fn say(&mut self, message: String) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message);
        }
    }

    fn disk_and_snapshots(&mut self, tables: &Tables, snapshots: &[(u64, u32)], others: &[(u64, u64)]) -> Result<()> {
        let layout = self.layout;
        let (offset, bytes) = (layout.l1_offset, 8 * tables.l1.len() as u64);
        self.found.add(0, 1)?;
        self.found.add(offset >> layout.cluster_bits, clusters(&layout, offset, bytes))?;
        for &(offset, bytes) in others.iter().filter(|(_, bytes)| *bytes != 0) {
            self.found.add(offset >> layout.cluster_bits, clusters(&layout, offset, bytes))?;
        }
        self.l1(&tables.l1, true)?;
        for &(offset, entries) in snapshots {
            let bytes = u64::from(entries) * 8;
            self.found.add(offset >> layout.cluster_bits, clusters(&layout, offset, bytes))?;
            match read_l1(&layout, self.storage, offset, entries) {
                Ok(l1) => self.l1(&l1, false)?,
                Err(error) => self.say(format!("snapshot: {error}")),
            }
        }
        Ok(())
    }

    fn refcount_structures(&mut self, tables: &Tables) -> Result<()> {
        let layout = self.layout;
        let (table, table_clusters) = tables.refcounts.table();
        self.found.add(table >> layout.cluster_bits, table_clusters.into())?;
        for (number, &offset) in tables.refcounts.block_offsets().iter().enumerate() {
            if offset == 0 {
                continue;
            }
            if offset & layout.in_cluster() != 0 || offset & !OFFSET_MASK != 0 || offset >= self.file_end {
                self.say(format!("refcount block {number} is at {offset:#x}, where none can be"));
                self.report.bad_blocks.push(number as u64);
            } else {
                self.found.add(offset >> layout.cluster_bits, 1)?;
            }
        }
        Ok(())
    }

    /// Refcount table and blocks from cluster `start` on: the table's offset and clusters, and all
    /// bytes by offset.
    fn place_refcounts(&mut self, start: u64) -> Result<(u64, u32, Vec<Placed>)> {
        let layout = self.layout;
        let (bits, cluster) = (layout.block_bits(), layout.cluster());
        let mut numbers: BTreeSet<u64> = self.found.clusters().map(|at| at >> bits).collect();
        let table_clusters = loop {
            let most = numbers.last().copied().unwrap_or(0);
            let table_clusters = ((most + 1) * 8).div_ceil(cluster);
            if table_clusters * cluster > MAX_REFCOUNT_TABLE_BYTES {
                return Err(BlockError::damaged("its tables refer to clusters behind any end of the file"));
            }
            if numbers.len() as u64 * cluster > MAX_BLOCK_BYTES {
                return Err(BlockError::damaged("its tables refer to clusters all over the address space"));
            }
            let end = start + table_clusters + numbers.len() as u64;
            let before = numbers.len();
            numbers.extend(start >> bits..=(end - 1) >> bits);
            if numbers.len() == before {
                break table_clusters;
            }
        };
        self.found.add(start, table_clusters + numbers.len() as u64)?;
        let mut table = vec![0; (table_clusters * cluster) as usize];
        let mut blocks = Vec::with_capacity(numbers.len() + 1);
        for (place, number) in numbers.into_iter().enumerate() {
            let offset = (start + table_clusters + place as u64) << layout.cluster_bits;
            table[number as usize * 8..][..8].copy_from_slice(&offset.to_be_bytes());
            blocks.push((offset, self.block(number)));
        }
        blocks.push((start << layout.cluster_bits, table));
        Ok((start << layout.cluster_bits, table_clusters as u32, blocks))
    }

    fn block(&self, number: u64) -> Vec<u8> {
        let layout = self.layout;
        let mut bytes = vec![0; layout.cluster() as usize];
        for place in 0..1 << layout.block_bits() {
            let count = self.found.get((number << layout.block_bits()) + place).min(layout.max_refcount());
            refcounts::set(&mut bytes, place as usize, layout.refcount_order, count);
        }
        bytes
    }

    fn l1(&mut self, l1: &[u64], is_active: bool) -> Result<()> {
        for (index, word) in l1.iter().enumerate() {
            let offset = word & OFFSET_MASK;
            if offset == 0 {
                continue;
            }
            if offset & self.layout.in_cluster() != 0 || offset >= self.file_end {
                self.say(format!("L1 entry {index} points to {offset:#x}, where no L2 table can be"));
                if is_active {
                    self.report.bad_l1.push(index as u64);
                }
                continue;
            }
            self.found.add(offset >> self.layout.cluster_bits, 1)?;
            self.l2(offset, is_active)?;
        }
        Ok(())
    }

    fn l2(&mut self, table: u64, is_active: bool) -> Result<()> {
        let entries = L2Table::read(&self.layout, self.storage, table, self.file_end)?;
        for (index, entry) in entries.used() {
            if let Err(error) = self.entry(entry, is_active) {
                self.say(format!("L2 table at {table:#x}, entry {index}: {error}"));
                self.report.bad_l2.push((table, index as u64));
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry, is_active: bool) -> Result<()> {
        let layout = self.layout;
        if entry.is_compressed() {
            let at = layout.compressed(entry.word);
            if at.offset >= self.file_end {
                return Err(BlockError::damaged(format!("compressed data at {:#x} is behind the end", at.offset)));
            }
            if is_active {
                self.report.allocated += 1;
                self.report.compressed += 1;
                self.report.fragmented += 1;
            }
            return self.found.add(at.first, at.last - at.first + 1);
        }
        let units = if layout.extended_l2 { super::layout::SUBCLUSTERS } else { 1 };
        for unit in 0..units {
            entry.content(&layout, unit)?;
        }
        let Some(host) = entry.host(&layout)? else { return Ok(()) };
        if is_active {
            self.count_guest_cluster(entry, host)?;
        }
        if layout.external_data {
            return Ok(());
        }
        if host >= self.file_end {
            self.say(format!("ERROR data at {host:#x} is behind the end of the file at {:#x}", self.file_end));
            self.report.behind_end += 1;
        }
        self.found.add(host >> layout.cluster_bits, 1)
    }

    fn count_guest_cluster(&mut self, entry: Entry, host: u64) -> Result<()> {
        let is_read = self.layout.extended_l2 || entry.content(&self.layout, 0)? == Content::Data;
        if is_read {
            self.report.allocated += 1;
            let follows = self.previous != 0 && host == self.previous + self.layout.cluster();
            self.report.fragmented += u64::from(self.previous != 0 && !follows);
            self.previous = host;
        }
        Ok(())
    }

    /// Holds the references against the refcounts.
    fn compare(&mut self, tables: &mut Tables) -> Result<()> {
        let layout = self.layout;
        let per_block = 1 << layout.block_bits();
        let offsets = tables.refcounts.block_offsets().to_vec();
        let mut bytes = vec![0; layout.cluster() as usize];
        for (number, &offset) in offsets.iter().enumerate() {
            if offset == 0 || self.report.bad_blocks.contains(&(number as u64)) {
                continue;
            }
            self.storage.read_bytes(&mut bytes, offset)?;
            let base = number as u64 * per_block;
            for (place, references) in self.found.run(base, per_block).enumerate() {
                let refcount = refcounts::get(&bytes, place, layout.refcount_order);
                if refcount != references {
                    differ(&mut self.report.differences, base + place as u64, refcount, references);
                }
            }
        }
        self.report.uncounted = self.count_uncounted(&offsets);
        Ok(())
    }

    fn count_uncounted(&self, offsets: &[u64]) -> u64 {
        let bits = self.layout.block_bits();
        let is_counted = |cluster: u64| {
            let number = cluster >> bits;
            offsets.get(number as usize).is_some_and(|offset| *offset != 0) && !self.report.bad_blocks.contains(&number)
        };
        self.found.clusters().filter(|cluster| !is_counted(*cluster)).count() as u64
    }
}

fn differ(differences: &mut Vec<Difference>, cluster: u64, refcount: u64, references: u64) {
    if let Some(last) = differences.last_mut()
        && last.first + last.count == cluster
        && (last.refcount, last.references) == (refcount, references)
    {
        last.count += 1;
        return;
    }
    differences.push(Difference { first: cluster, count: 1, refcount, references });
}

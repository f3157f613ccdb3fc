//! Who uses each cluster of the file: the refcount table, its blocks, and allocation.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{Layout, MAX_REFCOUNT_TABLE_BYTES, OFFSET_MASK};
use crate::storage::Storage;
use crate::{BlockError, Result};

const CACHED_BYTES: u64 = 16 << 20;
/// Of blocks that change together, which the refcounts of 32 TiB in clusters of 64 KiB take.
const MAX_DIRTY_BYTES: u64 = 1 << 30;
const SECTOR: usize = 512;

/// A block in memory.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    /// The sectors that differ from the file, first and end.
    dirty: Option<(usize, usize)>,
}

impl Block {
    fn put(&mut self, place: usize, order: u32, count: u64) {
        set(&mut self.bytes, place, order, count);
        let sector = (place << order) / 8 / SECTOR;
        let (first, end) = self.dirty.unwrap_or((sector, sector));
        self.dirty = Some((first.min(sector), end.max(sector + 1)));
    }
}

fn uncountable(count: u64, order: u32) -> BlockError {
    BlockError::Refused(format!(
        "a cluster would be used {count} times, which refcounts of {} bits cannot count; delete snapshots",
        1 << order
    ))
}

/// Refcounts, cached and written back by [`Refcounts::write_blocks`].
#[derive(Debug)]
pub struct Refcounts {
    layout: Layout,
    /// Offset of each block, as the file has them.
    table: Vec<u64>,
    table_offset: u64,
    table_clusters: u32,
    blocks: BTreeMap<u64, Block>,
    table_dirty: BTreeSet<usize>,
    /// No cluster below is free.
    hint: u64,
    /// Offsets from here on have never been written: they are zero where storage grows so.
    pub fresh_from: u64,
    /// A table that replaced another, and whose offset the header does not have yet.
    moved: bool,
    /// Clusters of replaced tables, to be freed.
    pub replaced: Vec<(u64, u64)>,
}

impl Refcounts {
    pub fn open(layout: &Layout, storage: &dyn Storage, file_bytes: u64) -> Result<Self> {
        let bytes = u64::from(layout.refcount_table_clusters) << layout.cluster_bits;
        if layout.refcount_table_offset.saturating_add(bytes) > file_bytes.next_multiple_of(layout.cluster()) {
            return Err(BlockError::damaged("refcount_table_offset points behind the end of the file"));
        }
        let mut raw = vec![0; bytes as usize];
        storage.read_bytes(&mut raw, layout.refcount_table_offset)?;
        Ok(Self {
            layout: *layout,
            table: raw.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect(),
            table_offset: layout.refcount_table_offset,
            table_clusters: layout.refcount_table_clusters,
            blocks: BTreeMap::new(),
            table_dirty: BTreeSet::new(),
            hint: 0,
            fresh_from: file_bytes.next_multiple_of(layout.cluster()),
            moved: false,
            replaced: Vec::new(),
        })
    }

    /// The refcounts as the file has them, when changes in memory are not to be.
    pub fn reopen(other: &Self, storage: &dyn Storage) -> Result<Self> {
        let (mut layout, mut fields) = (other.layout, [0; 12]);
        storage.read_bytes(&mut fields, super::flush::HEADER_REFCOUNT_TABLE)?;
        let word = u64::from_be_bytes(*fields.first_chunk().unwrap_or(&[0; 8]));
        let clusters = u32::from_be_bytes(*fields.last_chunk().unwrap_or(&[0; 4]));
        (layout.refcount_table_offset, layout.refcount_table_clusters) = (word, clusters);
        layout.check()?;
        Self::open(&layout, storage, storage.len()?)
    }

    pub fn table(&self) -> (u64, u32) {
        (self.table_offset, self.table_clusters)
    }

    /// Offsets of the blocks there are.
    pub fn block_offsets(&self) -> &[u64] {
        &self.table
    }

    pub fn is_dirty(&self) -> bool {
        self.blocks.values().any(|block| block.dirty.is_some()) || self.is_table_dirty()
    }

    pub fn is_table_dirty(&self) -> bool {
        self.moved || !self.table_dirty.is_empty()
    }

    /// The block that counts `cluster` and the place in it; `None` where there is no block.
    fn block(&mut self, storage: &dyn Storage, cluster: u64) -> Result<Option<(&mut Block, usize)>> {
        let bits = self.layout.block_bits();
        let number = cluster >> bits;
        let offset = usize::try_from(number).ok().and_then(|at| self.table.get(at)).copied().unwrap_or(0);
        if offset == 0 {
            return Ok(None);
        }
        if offset & self.layout.in_cluster() != 0 || offset & !OFFSET_MASK != 0 {
            return Err(BlockError::damaged(format!("refcount table entry {number} is {offset:#x}")));
        }
        if !self.blocks.contains_key(&number) {
            self.make_room()?;
            let mut bytes = vec![0; self.layout.cluster() as usize];
            if offset >= storage.len()? {
                return Err(BlockError::damaged(format!("refcount block {number} is behind the end of the file")));
            }
            storage.read_bytes(&mut bytes, offset)?;
            self.blocks.insert(number, Block { bytes, dirty: None });
        }
        let place = (cluster & ((1 << bits) - 1)) as usize;
        Ok(self.blocks.get_mut(&number).map(|block| (block, place)))
    }

    fn make_room(&mut self) -> Result<()> {
        if self.blocks.len() as u64 >= (CACHED_BYTES >> self.layout.cluster_bits).max(4) {
            self.blocks.retain(|_, block| block.dirty.is_some());
        }
        if self.blocks.len() as u64 >= MAX_DIRTY_BYTES >> self.layout.cluster_bits {
            return Err(BlockError::damaged("its tables refer to clusters all over the address space"));
        }
        Ok(())
    }

    /// So many blocks are dirty that they should be written.
    pub fn is_crowded(&self) -> bool {
        self.blocks.len() as u64 > 2 * (CACHED_BYTES >> self.layout.cluster_bits).max(4)
    }

    pub fn get(&mut self, storage: &dyn Storage, cluster: u64) -> Result<u64> {
        let order = self.layout.refcount_order;
        Ok(self.block(storage, cluster)?.map_or(0, |(block, place)| get(&block.bytes, place, order)))
    }

    /// Sets the count of a cluster, which a block counts unless `count` is zero.
    pub fn set(&mut self, storage: &dyn Storage, cluster: u64, count: u64) -> Result<()> {
        if count > self.layout.max_refcount() {
            return Err(uncountable(count, self.layout.refcount_order));
        }
        let order = self.layout.refcount_order;
        let Some((block, place)) = self.block(storage, cluster)? else {
            if count == 0 {
                return Ok(());
            }
            return Err(BlockError::damaged(format!("no refcount block counts cluster {cluster:#x}")));
        };
        block.put(place, order, count);
        if count == 0 {
            self.hint = self.hint.min(cluster);
        }
        Ok(())
    }

    /// Adds `delta` to the count of each of `count` clusters.
    pub fn add(&mut self, storage: &dyn Storage, first: u64, count: u64, delta: i64) -> Result<()> {
        let end = first.saturating_add(count);
        let (bits, mut cluster) = (self.layout.block_bits(), first);
        while cluster < end {
            let stop = end.min(((cluster >> bits) + 1) << bits);
            self.add_in_block(storage, cluster, stop, delta)?;
            cluster = stop;
        }
        Ok(())
    }

    /// The same for the clusters from `first` up to `end`, all of one block.
    fn add_in_block(&mut self, storage: &dyn Storage, first: u64, end: u64, delta: i64) -> Result<()> {
        let (order, most) = (self.layout.refcount_order, self.layout.max_refcount());
        let Some((block, place)) = self.block(storage, first)? else {
            return Err(BlockError::damaged(format!("no refcount block counts cluster {first:#x}")));
        };
        for at in place..place + (end - first) as usize {
            let (cluster, now) = (first + (at - place) as u64, get(&block.bytes, at, order));
            let then = now.checked_add_signed(delta).ok_or_else(|| {
                BlockError::damaged(format!("the refcount of cluster {cluster:#x} is {now}, but it is in use"))
            })?;
            if then > most {
                return Err(uncountable(then, order));
            }
            block.put(at, order, then);
        }
        if delta < 0 {
            self.hint = self.hint.min(first);
        }
        Ok(())
    }

    /// Up to `wanted` free clusters in a row, counted once from now on: the first and how many.
    pub fn allocate(&mut self, storage: &dyn Storage, wanted: u64) -> Result<(u64, u64)> {
        loop {
            let first = self.find_free(storage, self.hint)?;
            if self.block(storage, first)?.is_none() {
                // The new block takes the free cluster, or a place near by: look again.
                self.hint = first;
                self.add_block(storage, first)?;
                continue;
            }
            let mut count = 0;
            while count < wanted && self.is_free_and_counted(storage, first + count)? {
                self.set(storage, first + count, 1)?;
                count += 1;
            }
            self.hint = first + count;
            self.fresh_from = self.fresh_from.max((first + count) << self.layout.cluster_bits);
            return Ok((first, count));
        }
    }

    /// Exactly `wanted` free clusters in a row: the first.
    pub fn allocate_contiguous(&mut self, storage: &dyn Storage, wanted: u64) -> Result<u64> {
        let mut first = self.find_free(storage, self.hint)?;
        let mut count = 0;
        while count < wanted {
            let cluster = first + count;
            if self.block(storage, cluster)?.is_none() {
                self.add_block(storage, cluster)?;
            }
            if self.get(storage, cluster)? == 0 {
                count += 1;
            } else {
                first = self.find_free(storage, cluster)?;
                count = 0;
            }
        }
        self.add(storage, first, wanted, 1)?;
        self.fresh_from = self.fresh_from.max((first + wanted) << self.layout.cluster_bits);
        Ok(first)
    }

    fn is_free_and_counted(&mut self, storage: &dyn Storage, cluster: u64) -> Result<bool> {
        let order = self.layout.refcount_order;
        Ok(self.block(storage, cluster)?.is_some_and(|(block, place)| get(&block.bytes, place, order) == 0))
    }

    fn find_free(&mut self, storage: &dyn Storage, from: u64) -> Result<u64> {
        let (order, bits) = (self.layout.refcount_order, self.layout.block_bits());
        let mut cluster = from;
        // Beyond the table nothing is in use, so this ends.
        while let Some((block, place)) = self.block(storage, cluster)? {
            let end = 1 << bits;
            if let Some(found) = (place..end).find(|&at| get(&block.bytes, at, order) == 0) {
                return Ok(cluster + (found - place) as u64);
            }
            cluster = ((cluster >> bits) + 1) << bits;
        }
        Ok(cluster)
    }

    /// A block for the clusters around `cluster`, which none counts. It is kept in a cluster of its
    /// own range.
    fn add_block(&mut self, storage: &dyn Storage, cluster: u64) -> Result<()> {
        let bits = self.layout.block_bits();
        let number = cluster >> bits;
        if number >= self.table.len() as u64 {
            return self.grow_table(storage, number);
        }
        // Nothing in this range is counted, so all of it is free.
        let home = cluster;
        self.insert_block(number, home);
        self.fresh_from = self.fresh_from.max((home + 1) << self.layout.cluster_bits);
        self.set(storage, home, 1)
    }

    fn insert_block(&mut self, number: u64, home: u64) {
        let bytes = vec![0; self.layout.cluster() as usize];
        let sectors = bytes.len() / SECTOR;
        self.blocks.insert(number, Block { bytes, dirty: Some((0, sectors.max(1))) });
        self.table[number as usize] = home << self.layout.cluster_bits;
        self.table_dirty.insert(number as usize);
    }

    /// A larger table, with room for block `number`. It goes where nothing is counted yet, together
    /// with the blocks that count it.
    fn grow_table(&mut self, storage: &dyn Storage, number: u64) -> Result<()> {
        let (bits, cluster) = (self.layout.block_bits(), self.layout.cluster());
        let per_cluster = cluster / 8;
        let start = number << bits;
        let wanted = (number + 1).max(self.table.len() as u64 * 3 / 2) + 2;
        let clusters = wanted.div_ceil(per_cluster);
        if clusters * cluster > MAX_REFCOUNT_TABLE_BYTES {
            return Err(BlockError::Refused(
                "the image is as large as its refcounts can count; use larger clusters".into(),
            ));
        }
        let blocks = blocks_to_count(clusters, 1 << bits);
        self.replaced.push((self.table_offset >> self.layout.cluster_bits, self.table_clusters.into()));
        self.table.resize((clusters * per_cluster).max(number + blocks) as usize, 0);
        for block in 0..blocks {
            self.insert_block(number + block, start + block);
        }
        self.table_offset = (start + blocks) << self.layout.cluster_bits;
        self.table_clusters = clusters as u32;
        self.moved = true;
        self.fresh_from = self.fresh_from.max((start + blocks + clusters) << self.layout.cluster_bits);
        self.add(storage, start, blocks + clusters, 1)
    }

    /// Moves the blocks that changed, and the table, to free places: what the file has stays as it is
    /// until the header names the new table. The runs of clusters that are free then.
    pub fn relocate(&mut self, storage: &dyn Storage) -> Result<Vec<(u64, u64)>> {
        let (bits, clusters) = (self.layout.cluster_bits, self.table_clusters);
        let table = self.allocate_contiguous(storage, clusters.into())?;
        let mut left = Vec::new();
        if self.moved {
            // It has grown meanwhile, and moved by that.
            left.push((table, clusters.into()));
        } else {
            left.push((self.table_offset >> bits, clusters.into()));
            (self.table_offset, self.moved) = (table << bits, true);
        }
        // Each place that is found may change one more block.
        loop {
            let unmoved = self.unmoved();
            if unmoved.is_empty() {
                left.append(&mut self.replaced);
                return Ok(left);
            }
            for number in unmoved {
                let (home, _one) = self.allocate(storage, 1)?;
                left.push((self.table[number as usize] >> bits, 1));
                self.move_block(number, home << bits);
            }
        }
    }

    /// Blocks that changed and are where the file's table says they are.
    fn unmoved(&self) -> Vec<u64> {
        let changed = self.blocks.iter().filter(|(_, block)| block.dirty.is_some());
        changed.map(|(number, _)| *number).filter(|number| !self.table_dirty.contains(&(*number as usize))).collect()
    }

    fn move_block(&mut self, number: u64, offset: u64) {
        if let Some(block) = self.blocks.get_mut(&number) {
            block.dirty = Some((0, block.bytes.len().div_ceil(SECTOR)));
        }
        self.table[number as usize] = offset;
        self.table_dirty.insert(number as usize);
    }

    /// Writes the blocks that changed. The table must not be written before they are stable.
    pub fn write_blocks(&mut self, storage: &dyn Storage) -> Result<()> {
        for (number, block) in &mut self.blocks {
            if let Some((first, end)) = block.dirty {
                let end = (end * SECTOR).min(block.bytes.len());
                storage.write_bytes(
                    &block.bytes[first * SECTOR..end],
                    self.table[*number as usize] + (first * SECTOR) as u64,
                )?;
                block.dirty = None;
            }
        }
        Ok(())
    }

    /// Writes the table's changes. If it has moved, the header has to learn that once this is stable.
    pub fn write_table(&mut self, storage: &dyn Storage) -> Result<()> {
        if self.moved {
            let bytes: Vec<u8> = self.table.iter().flat_map(|word| word.to_be_bytes()).collect();
            storage.write_bytes(&bytes, self.table_offset)?;
        } else {
            for &entry in &self.table_dirty {
                storage.write_bytes(&self.table[entry].to_be_bytes(), self.table_offset + 8 * entry as u64)?;
            }
        }
        self.table_dirty.clear();
        Ok(())
    }

    /// Whether the table is where the header does not say it is.
    pub fn has_moved(&self) -> bool {
        self.moved
    }

    /// The header says where the table is, and that is stable.
    pub fn note_home(&mut self) {
        self.moved = false;
    }
}

/// The blocks that are needed to count a new table of `clusters` and themselves.
fn blocks_to_count(clusters: u64, per_block: u64) -> u64 {
    let mut blocks = 1;
    while blocks * per_block < clusters + blocks {
        blocks += 1;
    }
    blocks
}

/// Entry `index` of a block of refcounts that are 2^`order` bits wide.
pub fn get(block: &[u8], index: usize, order: u32) -> u64 {
    match order {
        0..=2 => {
            let width = 1 << order;
            let bit = index * width;
            u64::from(block[bit / 8] >> (bit % 8)) & ((1 << width) - 1)
        }
        3 => block[index].into(),
        _ => {
            let bytes = 1 << (order - 3);
            block[index * bytes..][..bytes].iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
        }
    }
}

/// Changes entry `index` to `count`, which fits.
pub fn set(block: &mut [u8], index: usize, order: u32, count: u64) {
    match order {
        0..=2 => {
            let width = 1 << order;
            let bit = index * width;
            let mask = ((1u16 << width) - 1) as u8;
            let byte = &mut block[bit / 8];
            *byte = *byte & !(mask << (bit % 8)) | (count as u8) << (bit % 8);
        }
        3 => block[index] = count as u8,
        _ => {
            let bytes = 1 << (order - 3);
            block[index * bytes..][..bytes].copy_from_slice(&count.to_be_bytes()[8 - bytes..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcount_of_every_width_is_read_back_and_leaves_its_neighbours() {
        for order in 0..=6 {
            let most = if order == 6 { u64::MAX } else { (1 << (1 << order)) - 1 };
            let mut block = vec![0; 512];
            set(&mut block, 3, order, most);
            let around: Vec<u64> = (2..5).map(|index| get(&block, index, order)).collect();
            assert_eq!(around, [0, most, 0], "order {order}");
            set(&mut block, 3, order, 0);
            assert!(block.iter().all(|byte| *byte == 0));
        }
    }
}

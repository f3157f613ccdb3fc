//! L2 tables in memory, in slices, as many as a bound allows.

use std::collections::HashMap;

use crate::storage::Storage;
use crate::{BlockError, Result};

const MAX_SLICE_BYTES: u64 = 4096;

#[derive(Debug)]
struct Slot {
    /// Where the slice is in the file.
    offset: u64,
    words: Box<[u64]>,
    dirty: bool,
    /// Used since the clock's hand came by.
    used: bool,
}

/// Slices of L2 tables. Dirty ones stay until they are written, even past the bound; then
/// [`SliceCache::is_crowded`] asks for that.
#[derive(Debug)]
pub struct SliceCache {
    slots: Vec<Slot>,
    index: HashMap<u64, usize>,
    capacity: usize,
    hand: usize,
    slice_bytes: u64,
    cluster: u64,
    dirty: usize,
}

impl SliceCache {
    /// A cache of at most `bytes`, for tables that are a cluster long.
    pub fn new(bytes: u64, cluster: u64) -> Self {
        let slice_bytes = cluster.min(MAX_SLICE_BYTES);
        let capacity = usize::try_from(bytes / slice_bytes).unwrap_or(usize::MAX).max(16);
        Self { slots: Vec::new(), index: HashMap::new(), capacity, hand: 0, slice_bytes, cluster, dirty: 0 }
    }

    pub fn slice_bytes(&self) -> u64 {
        self.slice_bytes
    }

    /// So much is dirty that it should be written.
    pub fn is_crowded(&self) -> bool {
        self.dirty > self.capacity / 2
    }

    pub fn is_dirty(&self) -> bool {
        self.dirty != 0
    }

    /// The slice at `offset`, read if need be: its slot.
    pub fn load(&mut self, storage: &dyn Storage, offset: u64) -> Result<usize> {
        if let Some(&slot) = self.index.get(&offset) {
            self.slots[slot].used = true;
            return Ok(slot);
        }
        let mut bytes = vec![0; self.slice_bytes as usize];
        let file_end = storage.len()?;
        if offset >= file_end.next_multiple_of(self.cluster) {
            return Err(BlockError::CutOff { host: offset, file_end });
        }
        storage.read_bytes(&mut bytes, offset)?;
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        let slot = Slot { offset, words, dirty: false, used: true };
        let place = self.place();
        if place == self.slots.len() {
            self.slots.push(slot);
        } else {
            self.index.remove(&self.slots[place].offset);
            self.slots[place] = slot;
        }
        self.index.insert(offset, place);
        Ok(place)
    }

    /// A slot to fill: a new one, or one whose clean slice has not been used for a while.
    fn place(&mut self) -> usize {
        if self.slots.len() < self.capacity {
            return self.slots.len();
        }
        for _ in 0..2 * self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if !slot.dirty && !std::mem::take(&mut slot.used) {
                return self.hand;
            }
        }
        self.slots.len()
    }

    pub fn words(&self, slot: usize) -> &[u64] {
        &self.slots[slot].words
    }

    pub fn set(&mut self, slot: usize, index: usize, word: u64) {
        let slot = &mut self.slots[slot];
        slot.words[index] = word;
        self.dirty += usize::from(!slot.dirty);
        slot.dirty = true;
    }

    /// Writes what is dirty, neighbours in one go.
    pub fn write(&mut self, storage: &dyn Storage) -> Result<()> {
        let mut dirty: Vec<usize> = (0..self.slots.len()).filter(|&slot| self.slots[slot].dirty).collect();
        dirty.sort_unstable_by_key(|&slot| self.slots[slot].offset);
        let next = |last: usize, slot: usize| self.slots[last].offset + self.slice_bytes == self.slots[slot].offset;
        for run in dirty.chunk_by(|&last, &slot| next(last, slot)) {
            let words = run.iter().flat_map(|&slot| self.slots[slot].words.iter());
            let bytes: Vec<u8> = words.flat_map(|word| word.to_be_bytes()).collect();
            storage.write_bytes(&bytes, self.slots[run[0]].offset)?;
        }
        for slot in dirty {
            self.slots[slot].dirty = false;
        }
        self.dirty = 0;
        self.slots.truncate(self.capacity.max(self.slots.len().min(self.capacity)));
        self.index.retain(|_, slot| *slot < self.slots.len());
        Ok(())
    }

    /// Forgets everything; nothing may be dirty.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.index.clear();
        self.dirty = 0;
    }
}

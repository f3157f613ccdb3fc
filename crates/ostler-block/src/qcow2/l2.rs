//! L2 tables as a whole.

use super::entry::Entry;
use super::layout::Layout;
use crate::buffer::Scratch;
use crate::storage::Storage;
use crate::{BlockError, Result};

/// A copy of an L2 table in memory that the thread uses for the next one, too.
#[derive(Debug)]
pub struct L2Table {
    bytes: Scratch,
    /// Words of an entry.
    words: usize,
}

impl L2Table {
    pub fn read(layout: &Layout, storage: &dyn Storage, offset: u64, file_end: u64) -> Result<Self> {
        if offset & layout.in_cluster() != 0 || offset >= file_end {
            return Err(BlockError::damaged(format!("an L1 entry points to {offset:#x}, where no L2 table can be")));
        }
        let mut bytes = Scratch::new(layout.cluster() as usize);
        storage.read_bytes(&mut bytes, offset)?;
        Ok(Self { bytes, words: layout.entry_words() as usize })
    }

    /// The entries that are not all zero, with their index.
    pub fn used(&self) -> impl Iterator<Item = (usize, Entry)> + '_ {
        let words = self.bytes.as_chunks::<8>().0;
        // Most of a table is often empty: whole lines of it are passed over.
        let lines = words
            .chunks(LINE)
            .enumerate()
            .filter(|(_, line)| line.iter().fold(0, |seen, word| seen | u64::from_ne_bytes(*word)) != 0);
        let entries = lines.flat_map(move |(number, line)| {
            let first = number * LINE / self.words;
            line.chunks(self.words).enumerate().map(move |(at, words)| (first + at, entry(words)))
        });
        entries.filter(|(_, entry)| *entry != Entry::default())
    }

    pub fn set(&mut self, index: usize, entry: Entry) {
        let bytes = self.bytes[index * self.words * 8..].as_chunks_mut::<8>().0;
        for (place, word) in bytes.iter_mut().zip([entry.word, entry.bitmap]).take(self.words) {
            *place = word.to_be_bytes();
        }
    }

    pub fn write(&self, storage: &dyn Storage, offset: u64) -> Result<()> {
        Ok(storage.write_bytes(&self.bytes, offset)?)
    }
}

/// Words that are looked at together; entries of two words do not cross its end.
const LINE: usize = 8;

fn entry(words: &[[u8; 8]]) -> Entry {
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_be_bytes(*word));
    Entry { word: word(0), bitmap: word(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::layout::SUBCLUSTERS;
    use crate::storage::MemoryStorage;

    fn layout(extended_l2: bool) -> Layout {
        Layout { cluster_bits: 14, extended_l2, ..Layout::default() }
    }

    #[test]
    fn entries_of_either_size_are_found_where_they_were_set() {
        for extended_l2 in [false, true] {
            let layout = layout(extended_l2);
            let storage = MemoryStorage::new(vec![0; 1 << 15], 1 << 15);
            let mut table = L2Table::read(&layout, &storage, 1 << 14, 1 << 15).expect("a table");
            assert_eq!(table.used().count(), 0);
            let last = (1 << layout.l2_bits()) - 1;
            let bitmap = if extended_l2 { 1 << SUBCLUSTERS } else { 0 };
            let set = [0, 1, 7, 300, last].map(|at| (at, Entry { word: at as u64 + 1, bitmap }));
            for (index, entry) in set {
                table.set(index, entry);
            }
            table.write(&storage, 1 << 14).expect("write");
            let again = L2Table::read(&layout, &storage, 1 << 14, 1 << 15).expect("a table");
            assert_eq!(again.used().collect::<Vec<_>>(), set);
        }
    }

    #[test]
    fn table_that_no_cluster_holds_is_refused() {
        let storage = MemoryStorage::new(vec![0; 1 << 15], 1 << 15);
        for offset in [8, 1 << 15] {
            assert!(L2Table::read(&layout(false), &storage, offset, 1 << 15).is_err());
        }
    }
}

//! Which parts of a disk were written: a bit for each granule.

use std::sync::atomic::{AtomicU64, Ordering};

const WORD_BITS: u64 = 64;

/// Bits of granules, which any thread may set.
#[derive(Debug)]
pub struct DirtyMap {
    size: u64,
    granularity_bits: u32,
    words: Vec<AtomicU64>,
}

impl Clone for DirtyMap {
    fn clone(&self) -> Self {
        let words = self.words.iter().map(|word| AtomicU64::new(word.load(Ordering::SeqCst))).collect();
        Self { size: self.size, granularity_bits: self.granularity_bits, words }
    }
}

impl DirtyMap {
    /// Nothing of a disk of `size` bytes was written.
    pub fn new(size: u64, granularity_bits: u32) -> Self {
        let words = size.div_ceil(1 << granularity_bits).div_ceil(WORD_BITS);
        Self { size, granularity_bits, words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The lowest bit of the first byte is the first granule. Missing bytes are zero; bits behind the
    /// end of the disk are dropped.
    pub fn with_bytes(self, bytes: &[u8]) -> Self {
        for (word, bytes) in self.words.iter().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_le_bytes(whole), Ordering::Relaxed);
        }
        let used = self.granules() % WORD_BITS;
        if let Some(last) = self.words.last()
            && used != 0
        {
            last.fetch_and((1 << used) - 1, Ordering::Relaxed);
        }
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            self.words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        bytes.truncate(self.granules().div_ceil(8) as usize);
        bytes
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    fn granules(&self) -> u64 {
        self.size.div_ceil(self.granularity())
    }

    /// Bytes of the granules that are set.
    pub fn dirty_bytes(&self) -> u64 {
        let set: u64 = self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum();
        (set << self.granularity_bits).min(self.size)
    }

    /// A range was written; what is behind the end of the disk is left out.
    pub fn mark(&self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return;
        }
        let (first, last) = (offset >> self.granularity_bits, (end - 1) >> self.granularity_bits);
        for index in first / WORD_BITS..=last / WORD_BITS {
            let low = first.max(index * WORD_BITS) - index * WORD_BITS;
            let high = last.min(index * WORD_BITS + WORD_BITS - 1) - index * WORD_BITS;
            let mask = (!0 >> (WORD_BITS - 1 - high)) & (!0 << low);
            let word = &self.words[index as usize];
            if word.load(Ordering::Relaxed) & mask != mask {
                word.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// Sets all that is set in `other`, whose granules may be of another size.
    pub fn merge(&self, other: &Self) {
        for (index, word) in other.words.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                let granule = index as u64 * WORD_BITS + u64::from(bits.trailing_zeros());
                self.mark(granule << other.granularity_bits, other.granularity());
                bits &= bits - 1;
            }
        }
    }

    /// The range that the granules of another cover.
    pub fn whole_granules(&self, offset: u64, len: u64) -> (u64, u64) {
        let first = offset >> self.granularity_bits << self.granularity_bits;
        let end = offset.saturating_add(len).min(self.size);
        (first, end.next_multiple_of(self.granularity()).min(self.size))
    }

    /// Clears the first run of marks in a range, or `most` bytes of it, at least one granule: first
    /// and end.
    pub fn take_run(&self, from: u64, end: u64, most: u64) -> Option<(u64, u64)> {
        let last = end.min(self.size).div_ceil(self.granularity());
        let first = self.next_set(from >> self.granularity_bits, last)?;
        let most = (most >> self.granularity_bits).max(1);
        let mut next = first;
        while next < last && next - first < most && self.unset(next) {
            next += 1;
        }
        // Another may have taken the first one meanwhile.
        if next == first {
            return self.take_run((first + 1) << self.granularity_bits, end, most << self.granularity_bits);
        }
        Some((first << self.granularity_bits, (next << self.granularity_bits).min(self.size)))
    }

    fn next_set(&self, mut granule: u64, last: u64) -> Option<u64> {
        while granule < last {
            let word = self.words.get((granule / WORD_BITS) as usize)?.load(Ordering::Acquire);
            let rest = word >> (granule % WORD_BITS);
            if rest != 0 {
                let found = granule + u64::from(rest.trailing_zeros());
                return (found < last).then_some(found);
            }
            granule = (granule / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    /// Whether the granule at `offset` is set, and the bytes from there, up to `limit`, that are like it.
    pub fn run_at(&self, offset: u64, limit: u64) -> (bool, u64) {
        let end = offset.saturating_add(limit).min(self.size);
        if offset >= end {
            return (false, 0);
        }
        let (first, last) = (offset >> self.granularity_bits, end.div_ceil(self.granularity()));
        let is_set = self.next_set(first, first + 1).is_some();
        let next = if is_set { self.next_unset(first, last) } else { self.next_set(first, last) };
        let stop = next.map_or(end, |granule| (granule << self.granularity_bits).min(end));
        (is_set, stop - offset)
    }

    fn next_unset(&self, mut granule: u64, last: u64) -> Option<u64> {
        while granule < last {
            let word = self.words.get((granule / WORD_BITS) as usize)?.load(Ordering::Acquire);
            let rest = !word >> (granule % WORD_BITS);
            if rest != 0 {
                let found = granule + u64::from(rest.trailing_zeros());
                return (found < last).then_some(found);
            }
            granule = (granule / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    /// Clears a mark; whether it was set.
    fn unset(&self, granule: u64) -> bool {
        let mask = 1 << (granule % WORD_BITS);
        self.words[(granule / WORD_BITS) as usize].fetch_and(!mask, Ordering::SeqCst) & mask != 0
    }

    pub fn clear(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_range_sets_every_granule_it_touches_and_no_other() {
        for (offset, len) in [(0, 1), (511, 2), (512, 512), (63 * 512, 1024), (100_000, 70_000), (0, 1 << 20)] {
            let map = DirtyMap::new(1 << 20, 9);
            map.mark(offset, len);
            let bytes = map.bytes();
            for granule in 0..2048 {
                let touched = granule * 512 < offset + len && (granule + 1) * 512 > offset;
                assert_eq!(bytes[granule as usize / 8] >> (granule % 8) & 1 == 1, touched, "{offset} {len} {granule}");
            }
        }
    }

    #[test]
    fn merge_of_coarser_granules_sets_all_they_cover_within_the_disk() {
        let (fine, coarse) = (DirtyMap::new(100_000, 9), DirtyMap::new(100_000, 16));
        coarse.mark(99_999, 1);
        fine.merge(&coarse);
        assert_eq!((fine.dirty_bytes(), coarse.dirty_bytes()), (34_816, 65_536));
        assert_eq!(fine.bytes().len(), 25);
    }

    #[test]
    fn runs_are_taken_in_order_each_once_and_no_longer_than_asked() {
        let map = DirtyMap::new(100_000, 9);
        map.mark(0, 512);
        map.mark(40_000, 3 * 512);
        map.mark(99_999, 1);
        let taken: Vec<_> = std::iter::from_fn(|| map.take_run(0, 100_000, 1024)).collect();
        assert_eq!(taken, [(0, 512), (39_936, 40_960), (40_960, 41_984), (99_840, 100_000)]);
        assert_eq!(map.dirty_bytes(), 0);
        map.mark(0, 2048);
        assert_eq!(map.take_run(512, 1024, 1 << 20), Some((512, 1024)));
        assert_eq!(map.whole_granules(513, 512), (512, 1536));
    }

    #[test]
    fn runs_are_told_in_order_and_cut_at_the_limit() {
        let map = DirtyMap::new(100_000, 9);
        map.mark(512, 512);
        map.mark(32_768, 40_000);
        map.mark(99_999, 1);
        let (mut at, mut runs) = (0, Vec::new());
        while at < map.size() {
            let (is_set, len) = map.run_at(at, u64::MAX);
            assert!(len > 0);
            at += len;
            runs.push((is_set, at));
        }
        let told = [(false, 512), (true, 1024), (false, 32_768), (true, 73_216), (false, 99_840), (true, 100_000)];
        assert_eq!(runs, told);
        assert_eq!(map.run_at(40_001, 100), (true, 100));
        assert_eq!(map.run_at(1000, 100), (true, 24));
        assert_eq!(map.run_at(100_000, 1), (false, 0));
    }

    #[test]
    fn bits_behind_the_end_of_the_disk_are_dropped() {
        let map = DirtyMap::new(5 * 512, 9).with_bytes(&[0xff; 16]);
        assert_eq!(map.bytes(), [0x1f]);
    }
}

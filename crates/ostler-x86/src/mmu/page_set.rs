//! Sets of pages that answer quickly whether an INVLPG may concern one of them.

/// Bits of each filter: a power of two, far above the pages of code in use at a time.
const BITS: usize = 4096;
const WORDS: usize = BITS / 64;

/// A set of addresses that may say yes too often, never too rarely.
#[derive(Debug)]
struct Filter([u64; WORDS]);

impl Filter {
    fn place(key: u64) -> (usize, u64) {
        let hash = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize;
        (hash / 64, 1 << (hash % 64))
    }

    fn add(&mut self, key: u64) {
        let (word, bit) = Self::place(key);
        self.0[word] |= bit;
    }

    fn may_have(&self, key: u64) -> bool {
        let (word, bit) = Self::place(key);
        self.0[word] & bit != 0
    }
}

/// Pages of any size, by linear address; may say yes too often, never too rarely.
#[derive(Debug)]
pub struct PageSet {
    /// By 4 KiB.
    pages: Filter,
    /// Pages of 2 and 4 MiB, by 4 MiB.
    large: Filter,
    /// A page of 1 GiB was among them.
    huge: bool,
}

impl Default for PageSet {
    fn default() -> Self {
        Self { pages: Filter([0; WORDS]), large: Filter([0; WORDS]), huge: false }
    }
}

impl PageSet {
    /// Adds the page of `1 << page_shift` bytes at `linear`.
    pub fn add(&mut self, linear: u64, page_shift: u32) {
        match page_shift {
            12 => self.pages.add(linear >> 12),
            30 => self.huge = true,
            _ => self.large.add(linear >> 22),
        }
    }

    /// Whether invalidating the page of `linear` may concern one of these.
    pub fn may_cover(&self, linear: u64) -> bool {
        self.huge || self.pages.may_have(linear >> 12) || self.large.may_have(linear >> 22)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_covered_by_one_of_any_size_around_it() {
        let mut set = PageSet::default();
        set.add(0x40_1234, 12);
        set.add(0xffff_ffff_8100_0000, 21);
        assert!(set.may_cover(0x40_1000) && set.may_cover(0xffff_ffff_8100_5000));
        assert!(!set.may_cover(0x40_2000) && !set.may_cover(0x7fff_0000_0000));
        set.add(0x8000_0000, 30);
        assert!(set.may_cover(0x7fff_0000_0000));
    }
}

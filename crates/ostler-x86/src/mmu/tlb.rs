//! The translation look-aside buffer: linear pages as host addresses.
//!
//! Each address space (PCID) has a tag of its own, so that another CR3 is another tag and nothing is lost. Forgetting
//! an address space gives it a new tag; entries with old tags are never found again. What an access does not find
//! here, the second level may have: the page of another address space had its place, or it is global and was used by
//! one with another tag. See [`Tlb::revive`].

use ostler_memory::PAGE_BYTES;

use crate::mmu::Privilege;
use crate::mmu::page_set::PageSet;
use crate::mmu::physical::PAGE_MASK;
use crate::mmu::second_level::SecondLevel;

/// Entries per bank. Direct-mapped: a load costs one compare.
const ENTRIES: usize = 1024;
const BANKS: usize = 4;
/// Tags live in the low bits of an entry's page, so there are 4095 of them before a real clear.
const LAST_TAG: u64 = PAGE_BYTES - 1;
const PCIDS: usize = 4096;

/// One translation. `read` and `write` are the linear page with the tag of the address space in its
/// low bits, or 0 when that access has to take the slow path.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
pub struct TlbEntry {
    pub read: u64,
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// The guest physical page, and in its low bits [`LARGE`], [`HUGE`] and [`GLOBAL`].
    pub physical: u64,
}

/// `physical` of an entry cut from a 2 or 4 MiB page.
pub const LARGE: u64 = 1 << 0;
/// `physical` of an entry cut from a 1 GiB page.
pub const HUGE: u64 = 1 << 1;
/// `physical` of an entry that every address space has.
pub const GLOBAL: u64 = 1 << 2;

impl TlbEntry {
    /// The linear page, 0 where there is none.
    pub fn page(&self) -> u64 {
        (self.read | self.write) & PAGE_MASK
    }

    /// The tag of the address space, 0 where there is none.
    pub fn tag(&self) -> u64 {
        (self.read | self.write) & !PAGE_MASK
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A bank of translations per [`Privilege`].
#[derive(Debug)]
pub struct Tlb {
    entries: Box<[[TlbEntry; ENTRIES]; BANKS]>,
    second: SecondLevel,
    /// The current address space's.
    tag: u64,
    last_tag: u64,
    pcid: u16,
    /// The tag of each PCID, if not older than `spaces_from`.
    spaces: Box<[u16; PCIDS]>,
    /// The oldest tag that an address space may still have, and the oldest that a global page may.
    spaces_from: u64,
    globals_from: u64,
    /// Large pages of which there are entries.
    large: PageSet,
}

impl Default for Tlb {
    fn default() -> Self {
        let mut tlb = Self {
            entries: Box::new([[TlbEntry::default(); ENTRIES]; BANKS]),
            second: SecondLevel::default(),
            tag: 0,
            last_tag: 0,
            pcid: 0,
            spaces: Box::new([0; PCIDS]),
            spaces_from: 1,
            globals_from: 1,
            large: PageSet::default(),
        };
        tlb.flush(0);
        tlb
    }
}

impl Tlb {
    #[inline(always)]
    pub fn entry(&self, privilege: Privilege, linear: u64) -> &TlbEntry {
        &self.entries[privilege as usize][(linear / PAGE_BYTES) as usize % ENTRIES]
    }

    /// What `read` or `write` of an entry has to equal for `linear` to hit.
    #[inline(always)]
    pub fn tagged(&self, linear: u64) -> u64 {
        linear & PAGE_MASK | self.tag
    }

    /// The current address space's tag: never 0.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// Adds the translation of `linear`, cut from a page of `1 << page_shift` bytes.
    pub fn insert(&mut self, privilege: Privilege, linear: u64, page_shift: u32, mut entry: TlbEntry) {
        if page_shift != 12 {
            entry.physical |= if page_shift == 30 { HUGE } else { LARGE };
            self.large.add(linear, page_shift);
        }
        self.second.insert(privilege, linear, self.tag, entry);
        self.entries[privilege as usize][(linear / PAGE_BYTES) as usize % ENTRIES] = entry;
    }

    /// After a miss: takes the entry of `linear` from the second level, if it is there.
    pub fn revive(&mut self, privilege: Privilege, linear: u64) {
        if let Some(entry) = self.second.find(privilege, linear, self.tag, self.globals_from) {
            self.entries[privilege as usize][(linear / PAGE_BYTES) as usize % ENTRIES] = entry;
        }
    }

    /// Goes on with the address space `pcid`: with the translations it had if `keep`, else with none. The answer is
    /// whether all others had to be forgotten, too.
    #[must_use]
    pub fn switch(&mut self, pcid: u16, keep: bool) -> bool {
        self.pcid = pcid;
        let known = u64::from(self.spaces[usize::from(pcid)]);
        if keep && known >= self.spaces_from {
            self.tag = known;
            return false;
        }
        self.new_tag()
    }

    /// Forgets the address space `pcid`, but for global pages. The answer is as of [`Tlb::switch`].
    #[must_use]
    pub fn flush_space(&mut self, pcid: u16) -> bool {
        self.spaces[usize::from(pcid)] = 0;
        pcid == self.pcid && self.new_tag()
    }

    /// Forgets every address space, but for global pages. The answer is as of [`Tlb::switch`].
    #[must_use]
    pub fn flush_spaces(&mut self) -> bool {
        self.spaces_from = self.last_tag + 1;
        self.new_tag()
    }

    /// Forgets everything, and goes on with the address space `pcid`.
    pub fn flush(&mut self, pcid: u16) {
        self.pcid = pcid;
        self.spaces_from = self.last_tag + 1;
        self.globals_from = self.last_tag + 1;
        self.large = PageSet::default();
        self.new_tag();
    }

    /// Gives the current address space a new tag; true when there was none left and all was cleared.
    fn new_tag(&mut self) -> bool {
        let exhausted = self.last_tag == LAST_TAG;
        if exhausted {
            self.entries.as_flattened_mut().fill(TlbEntry::default());
            self.second.clear();
            *self.spaces = [0; PCIDS];
            (self.last_tag, self.spaces_from, self.globals_from) = (0, 1, 1);
            self.large = PageSet::default();
        }
        self.last_tag += 1;
        self.tag = self.last_tag;
        self.spaces[usize::from(self.pcid)] = self.tag as u16;
        exhausted
    }

    /// Forgets the page of `linear`, however large it was: in the address space `pcid`, and as a global page.
    pub fn flush_page(&mut self, pcid: u16, linear: u64) {
        if self.large.may_cover(linear) {
            self.all().filter(|entry| covers(entry, linear)).for_each(TlbEntry::clear);
            return;
        }
        let index = (linear / PAGE_BYTES) as usize % ENTRIES;
        for bank in self.entries.iter_mut() {
            if bank[index].page() == linear & PAGE_MASK {
                bank[index].clear();
            }
        }
        self.second.flush_small(linear, u64::from(self.spaces[usize::from(pcid)]));
    }

    /// Sends stores to the physical page `gpa` to the slow path from now on.
    pub fn forbid_writes(&mut self, gpa: u64) {
        for entry in self.all().filter(|entry| entry.physical & PAGE_MASK == gpa & PAGE_MASK) {
            entry.write = 0;
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut TlbEntry> {
        self.entries.iter_mut().flatten().chain(self.second.iter_mut())
    }
}

/// Whether `linear` is in the page, of whatever size, that the entry was cut from.
fn covers(entry: &TlbEntry, linear: u64) -> bool {
    let mask = match entry.physical & (LARGE | HUGE) {
        0 => PAGE_MASK,
        // A 4 MiB page is covered by flushing both 2 MiB halves' worth of it.
        LARGE => !0x3f_ffff,
        _ => !0x3fff_ffff,
    };
    entry.page() & mask == linear & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Privilege = Privilege::User;

    fn fill(tlb: &mut Tlb, linear: u64, page_shift: u32, global: bool) {
        let tagged = tlb.tagged(linear);
        let physical = linear & PAGE_MASK | if global { GLOBAL } else { 0 };
        tlb.insert(USER, linear, page_shift, TlbEntry { read: tagged, write: 0, addend: 0, physical });
    }

    fn hits(tlb: &mut Tlb, linear: u64) -> bool {
        tlb.revive(USER, linear);
        let entry = tlb.entry(USER, linear);
        assert!(entry.write == 0, "a write that was not allowed stays so");
        entry.read == tlb.tagged(linear)
    }

    #[test]
    fn address_space_keeps_its_entries_while_another_runs() {
        let mut tlb = Tlb::default();
        fill(&mut tlb, 0x1000, 12, false);
        assert!(!tlb.switch(7, true));
        assert!(!hits(&mut tlb, 0x1000));
        fill(&mut tlb, 0x2000, 12, false);
        assert!(!tlb.switch(0, true));
        assert!(hits(&mut tlb, 0x1000) && !hits(&mut tlb, 0x2000));
        assert!(!tlb.switch(7, false));
        assert!(!hits(&mut tlb, 0x2000), "it was not to be kept");
    }

    #[test]
    fn global_page_is_found_in_every_address_space_until_all_is_flushed() {
        let mut tlb = Tlb::default();
        fill(&mut tlb, 0x1000, 12, true);
        assert!(!tlb.switch(3, false) && !tlb.flush_space(3) && !tlb.flush_spaces());
        assert!(hits(&mut tlb, 0x1000));
        tlb.flush(3);
        assert!(!hits(&mut tlb, 0x1000));
    }

    #[test]
    fn flushed_space_is_empty_when_it_comes_back() {
        let mut tlb = Tlb::default();
        fill(&mut tlb, 0x1000, 12, false);
        assert!(!tlb.switch(1, true) && !tlb.flush_space(0) && !tlb.switch(0, true));
        assert!(!hits(&mut tlb, 0x1000));
        fill(&mut tlb, 0x1000, 12, false);
        assert!(!tlb.switch(1, true) && !tlb.flush_spaces() && !tlb.switch(0, true));
        assert!(!hits(&mut tlb, 0x1000));
    }

    #[test]
    fn page_flushed_is_gone_in_every_size_and_address_space() {
        let mut tlb = Tlb::default();
        fill(&mut tlb, 0x1000, 12, true);
        fill(&mut tlb, 0x2000, 12, false);
        fill(&mut tlb, 0x40_3000, 21, false);
        assert!(!tlb.switch(1, true));
        tlb.flush_page(0, 0x1000);
        tlb.flush_page(1, 0x60_0000);
        assert!(!tlb.switch(0, true));
        assert!(!hits(&mut tlb, 0x1000) && hits(&mut tlb, 0x2000) && !hits(&mut tlb, 0x40_3000));
    }

    #[test]
    fn entry_that_lost_its_place_is_found_again() {
        let mut tlb = Tlb::default();
        let far = 0x1000 + ENTRIES as u64 * PAGE_BYTES;
        fill(&mut tlb, 0x1000, 12, false);
        fill(&mut tlb, far, 12, false);
        assert!(hits(&mut tlb, 0x1000) && hits(&mut tlb, far));
        tlb.forbid_writes(0x1000);
        tlb.flush_page(0, far);
        assert!(hits(&mut tlb, 0x1000) && !hits(&mut tlb, far));
    }

    #[test]
    fn tags_that_run_out_start_over_with_nothing() {
        let mut tlb = Tlb::default();
        fill(&mut tlb, 0x1000, 12, true);
        let mut rounds = 1;
        while !tlb.switch(0, false) {
            assert!(hits(&mut tlb, 0x1000));
            rounds += 1;
        }
        assert_eq!(rounds, LAST_TAG);
        assert!(!hits(&mut tlb, 0x1000) && tlb.tag() == 1);
    }
}

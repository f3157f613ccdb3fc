//! Address spaces (PCIDs): which translations outlive a change of CR3.
//!
//! The TLB proper knows the current address space and global pages; the rest is forgotten when that changes, and found again
//! in a second level, whose entries carry the tag of their address space. Forgetting an address space gives it a new
//! tag; entries with old tags are never found again. Global pages are found whatever their tag, unless it is older than
//! the last flush of everything.

use ostler_memory::PAGE_BYTES;

use crate::mmu::Privilege;
use crate::mmu::page_set::PageSet;
use crate::mmu::second_level::SecondLevel;
use crate::mmu::walk::Translation;

/// Tags live in the low bits of an entry's page: there are 4095 of them before a real clear.
const LAST_TAG: u64 = PAGE_BYTES - 1;
const PCIDS: usize = 4096;

/// The address spaces and their translations.
#[derive(Debug)]
pub struct Spaces {
    second: SecondLevel,
    /// The current address space's, and the youngest.
    tag: u64,
    last_tag: u64,
    pcid: u16,
    /// The tag of each PCID, if not older than `spaces_from`.
    tags: Box<[u16]>,
    /// The oldest tag that an address space may still have, and the oldest that a global page may.
    spaces_from: u64,
    globals_from: u64,
    /// Large pages of which there are entries.
    large: PageSet,
}

impl Default for Spaces {
    fn default() -> Self {
        let mut spaces = Self {
            second: SecondLevel::default(),
            tag: 0,
            last_tag: 0,
            pcid: 0,
            tags: vec![0; PCIDS].into(),
            spaces_from: 1,
            globals_from: 1,
            large: PageSet::default(),
        };
        spaces.flush(0);
        spaces
    }
}

impl Spaces {
    /// The current address space's tag: never 0, at most 4095.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// Keeps a translation of the current address space.
    pub fn insert(&mut self, privilege: Privilege, linear: u64, found: &Translation) {
        if found.page_shift != 12 {
            self.large.add(linear, found.page_shift);
        }
        self.second.insert(privilege, linear, self.tag, found);
    }

    /// A translation that was kept.
    pub fn find(&self, privilege: Privilege, linear: u64) -> Option<Translation> {
        self.second.find(privilege, linear, self.tag, self.globals_from)
    }

    /// Goes on with the address space `pcid`: with the translations it had if `keep`, else with none. The answer is
    /// whether all others had to be forgotten, too.
    #[must_use]
    pub fn switch(&mut self, pcid: u16, keep: bool) -> bool {
        self.pcid = pcid;
        let known = u64::from(self.tags[usize::from(pcid)]);
        if keep && known >= self.spaces_from {
            self.tag = known;
            return false;
        }
        self.new_tag()
    }

    /// Forgets the address space `pcid`, but for global pages. The answer is as of [`Spaces::switch`].
    #[must_use]
    pub fn flush_space(&mut self, pcid: u16) -> bool {
        self.tags[usize::from(pcid)] = 0;
        pcid == self.pcid && self.new_tag()
    }

    /// Forgets every address space, but for global pages. The answer is as of [`Spaces::switch`].
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
        // Whether all was cleared makes no difference now.
        self.new_tag();
    }

    /// Forgets the page of `linear`, however large it was: in the address space `pcid`, and as a global page.
    pub fn flush_page(&mut self, pcid: u16, linear: u64) {
        if self.large.may_cover(linear) {
            self.second.flush_any(linear);
        } else {
            self.second.flush_small(linear, u64::from(self.tags[usize::from(pcid)]));
        }
    }

    /// Gives the current address space a new tag; true when there was none left and all was cleared.
    fn new_tag(&mut self) -> bool {
        let exhausted = self.last_tag == LAST_TAG;
        if exhausted {
            self.second.clear();
            self.tags.fill(0);
            (self.last_tag, self.spaces_from, self.globals_from) = (0, 1, 1);
            self.large = PageSet::default();
        }
        self.last_tag += 1;
        self.tag = self.last_tag;
        self.tags[usize::from(self.pcid)] = self.tag as u16;
        exhausted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(spaces: &mut Spaces, linear: u64, page_shift: u32, global: bool) {
        spaces.insert(Privilege::User, linear, &Translation { gpa: !linear, writable: false, page_shift, global });
    }

    fn hits(spaces: &Spaces, linear: u64) -> bool {
        assert!(spaces.find(Privilege::Supervisor, linear).is_none(), "other rights, other entries");
        spaces.find(Privilege::User, linear).is_some()
    }

    #[test]
    fn address_space_keeps_its_entries_while_another_runs() {
        let mut spaces = Spaces::default();
        fill(&mut spaces, 0x1000, 12, false);
        assert!(!spaces.switch(7, true) && !hits(&spaces, 0x1000));
        fill(&mut spaces, 0x1000, 12, false);
        fill(&mut spaces, 0x2000, 12, false);
        assert!(!spaces.switch(0, true) && hits(&spaces, 0x1000) && !hits(&spaces, 0x2000));
        assert!(!spaces.switch(7, false) && !hits(&spaces, 0x2000), "it was not to be kept");
    }

    #[test]
    fn global_page_is_found_in_every_address_space_until_all_is_flushed() {
        let mut spaces = Spaces::default();
        fill(&mut spaces, 0x1000, 12, true);
        assert!(!spaces.switch(3, false) && !spaces.flush_space(3) && !spaces.flush_spaces());
        assert!(hits(&spaces, 0x1000));
        spaces.flush(3);
        assert!(!hits(&spaces, 0x1000));
    }

    #[test]
    fn flushed_space_is_empty_when_it_comes_back() {
        let mut spaces = Spaces::default();
        fill(&mut spaces, 0x1000, 12, false);
        assert!(!spaces.switch(1, true) && !spaces.flush_space(0) && !spaces.switch(0, true));
        assert!(!hits(&spaces, 0x1000));
        fill(&mut spaces, 0x1000, 12, false);
        assert!(!spaces.switch(1, true) && !spaces.flush_spaces() && !spaces.switch(0, true));
        assert!(!hits(&spaces, 0x1000));
    }

    #[test]
    fn page_flushed_is_gone_in_every_size() {
        let mut spaces = Spaces::default();
        fill(&mut spaces, 0x1000, 12, true);
        fill(&mut spaces, 0x2000, 12, false);
        fill(&mut spaces, 0x3000, 12, false);
        fill(&mut spaces, 0x40_3000, 21, false);
        assert!(!spaces.switch(1, true));
        spaces.flush_page(0, 0x1000);
        spaces.flush_page(0, 0x2000);
        spaces.flush_page(1, 0x3000);
        spaces.flush_page(0, 0x50_0000);
        assert!(!spaces.switch(0, true));
        let left = [0x1000, 0x2000, 0x3000, 0x40_3000].map(|page| hits(&spaces, page));
        assert_eq!(left, [false, false, true, false]);
    }

    #[test]
    fn tags_that_run_out_start_over_with_nothing() {
        let mut spaces = Spaces::default();
        fill(&mut spaces, 0x1000, 12, true);
        let mut rounds = 1;
        while !spaces.switch(0, false) {
            assert!(hits(&spaces, 0x1000));
            rounds += 1;
        }
        assert_eq!(rounds, LAST_TAG);
        assert!(!hits(&spaces, 0x1000) && spaces.tag() == 1);
    }
}

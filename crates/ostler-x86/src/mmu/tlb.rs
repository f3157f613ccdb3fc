//! The translation look-aside buffer: linear pages as host addresses.

use ostler_memory::PAGE_BYTES;

use crate::mmu::Privilege;
use crate::mmu::physical::PAGE_MASK;

/// Entries per bank. Direct-mapped: a load costs one compare.
const ENTRIES: usize = 1024;
const BANKS: usize = 4;
/// Tags live in the low bits of an entry's page, so there are 4095 of them before a real clear.
const LAST_TAG: u64 = PAGE_BYTES - 1;

/// One translation. `read` and `write` are the linear page with the tag of the generation in its
/// low bits, or 0 when that access has to take the slow path.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
pub struct TlbEntry {
    pub read: u64,
    pub write: u64,
    /// Host address minus linear address.
    pub addend: u64,
    /// The guest physical page; bit 0 set when it is part of a larger page, bit 1 when of a 1 GiB one.
    pub physical: u64,
}

/// `physical` of an entry cut from a 2 or 4 MiB page.
pub const LARGE: u64 = 1;
/// `physical` of an entry cut from a 1 GiB page.
pub const HUGE: u64 = 2;

/// A bank of translations per [`Privilege`].
#[derive(Debug)]
pub struct Tlb {
    entries: Box<[[TlbEntry; ENTRIES]; BANKS]>,
    tag: u64,
}

impl Default for Tlb {
    fn default() -> Self {
        Self { entries: Box::new([[TlbEntry::default(); ENTRIES]; BANKS]), tag: 1 }
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

    pub fn insert(&mut self, privilege: Privilege, linear: u64, entry: TlbEntry) {
        self.entries[privilege as usize][(linear / PAGE_BYTES) as usize % ENTRIES] = entry;
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        if self.tag == LAST_TAG {
            *self.entries = [[TlbEntry::default(); ENTRIES]; BANKS];
            self.tag = 0;
        }
        self.tag += 1;
    }

    /// Forgets the page of `linear`, however large it was.
    pub fn flush_page(&mut self, linear: u64) {
        for entry in self.entries.iter_mut().flatten() {
            let known = (entry.read | entry.write) & PAGE_MASK;
            let mask = match entry.physical & (LARGE | HUGE) {
                0 => PAGE_MASK,
                // A 4 MiB page is covered by flushing both 2 MiB halves' worth of it.
                LARGE => !0x3f_ffff,
                _ => !0x3fff_ffff,
            };
            if known & mask == linear & mask {
                *entry = TlbEntry::default();
            }
        }
    }

    /// Sends stores to the physical page `gpa` to the slow path from now on.
    pub fn forbid_writes(&mut self, gpa: u64) {
        for entry in self.entries.iter_mut().flatten() {
            if entry.physical & PAGE_MASK == gpa & PAGE_MASK {
                entry.write = 0;
            }
        }
    }
}

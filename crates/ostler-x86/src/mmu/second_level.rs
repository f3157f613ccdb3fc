//! Translations that the TLB proper may have lost to others of the same place, and those of other address spaces.

use ostler_memory::PAGE_BYTES;

use crate::mmu::Privilege;
use crate::mmu::physical::PAGE_MASK;
use crate::mmu::tlb::{GLOBAL, TlbEntry};

/// A power of two; 128 KiB.
const ENTRIES: usize = 4096;
const _: () = assert!(ENTRIES.is_power_of_two());

/// Where in [`TlbEntry::physical`] an entry here keeps its [`Privilege`].
const PRIVILEGE_SHIFT: u32 = 4;
const PRIVILEGE: u64 = 3 << PRIVILEGE_SHIFT;
/// Global pages are found by this instead of an address space's tag, which is never 0.
const EVERY_SPACE: u64 = 0;

/// Entries by page, rights and address space: direct-mapped, looked at when the TLB proper has no answer.
#[derive(Debug)]
pub struct SecondLevel(Box<[TlbEntry; ENTRIES]>);

impl Default for SecondLevel {
    fn default() -> Self {
        Self(Box::new([TlbEntry::default(); ENTRIES]))
    }
}

fn place(linear: u64, tag: u64, privilege: Privilege) -> usize {
    let mixed = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    ((linear / PAGE_BYTES) ^ mixed ^ (privilege as u64) << 10) as usize % ENTRIES
}

impl SecondLevel {
    /// Keeps a translation of `linear`, made for the address space `tag`.
    pub fn insert(&mut self, privilege: Privilege, linear: u64, tag: u64, entry: TlbEntry) {
        let key = if entry.physical & GLOBAL != 0 { EVERY_SPACE } else { tag };
        let physical = entry.physical | (privilege as u64) << PRIVILEGE_SHIFT;
        self.0[place(linear, key, privilege)] = TlbEntry { physical, ..entry };
    }

    /// The translation of `linear` for the address space `tag`, if a global page with a tag not before `globals_from`.
    pub fn find(&self, privilege: Privilege, linear: u64, tag: u64, globals_from: u64) -> Option<TlbEntry> {
        let fits = |entry: &&TlbEntry| {
            entry.page() == linear & PAGE_MASK && entry.physical & PRIVILEGE == (privilege as u64) << PRIVILEGE_SHIFT
        };
        let own = Some(&self.0[place(linear, tag, privilege)]).filter(fits).filter(|entry| entry.tag() == tag);
        let global = || {
            Some(&self.0[place(linear, EVERY_SPACE, privilege)])
                .filter(fits)
                .filter(|entry| entry.physical & GLOBAL != 0 && entry.tag() >= globals_from)
        };
        let mut entry = *own.or_else(global)?;
        entry.physical &= !PRIVILEGE;
        for access in [&mut entry.read, &mut entry.write] {
            if *access != 0 {
                *access = linear & PAGE_MASK | tag;
            }
        }
        Some(entry)
    }

    /// Forgets the small page of `linear` in the address space `tag` and as a global one.
    pub fn flush_small(&mut self, linear: u64, tag: u64) {
        for key in [tag, EVERY_SPACE] {
            for privilege in Privilege::ALL {
                let entry = &mut self.0[place(linear, key, privilege)];
                if entry.page() == linear & PAGE_MASK {
                    entry.clear();
                }
            }
        }
    }

    pub fn clear(&mut self) {
        self.0.fill(TlbEntry::default());
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut TlbEntry> {
        self.0.iter_mut()
    }
}

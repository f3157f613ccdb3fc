//! Translations of every address space, which outlive a change of CR3 and what the TLB has no place for.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

use ostler_memory::PAGE_BYTES;

use crate::mmu::Privilege;
use crate::mmu::physical::PAGE_MASK;
use crate::mmu::walk::Translation;

/// A power of two; 128 KiB.
const ENTRIES: usize = 4096;
const _: () = assert!(ENTRIES.is_power_of_two());

/// Global pages are found by this instead of an address space's tag, which is never 0.
const EVERY_SPACE: u64 = 0;

/// A page in an address space, or in all of them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
struct Entry {
    /// The linear page, with the tag of the address space it was made for in the low bits.
    page_and_tag: u64,
    /// The guest physical page.
    physical: u64,
    privilege: u8,
    page_shift: u8,
    writable: bool,
    global: bool,
}

impl Entry {
    fn page(&self) -> u64 {
        self.page_and_tag & PAGE_MASK
    }

    fn tag(&self) -> u64 {
        self.page_and_tag & !PAGE_MASK
    }

    fn is(&self, privilege: Privilege, linear: u64) -> bool {
        self.page() == linear & PAGE_MASK && self.privilege == privilege as u8
    }

    /// Whether `linear` is in the page, of whatever size, that the entry was cut from.
    fn covers(&self, linear: u64) -> bool {
        (self.page() ^ linear) >> self.page_shift == 0
    }
}

/// Direct-mapped by page, rights and address space.
#[derive(Debug)]
pub struct SecondLevel(Box<[Entry; ENTRIES]>);

impl Default for SecondLevel {
    fn default() -> Self {
        let layout = Layout::new::<[Entry; ENTRIES]>();
        // SAFETY: the layout is of some bytes; zeros are a valid entry (numbers, and `false`), the default one. Nothing
        // is touched, so that a vCPU which never runs costs no memory here.
        unsafe {
            let entries = alloc_zeroed(layout);
            if entries.is_null() {
                handle_alloc_error(layout);
            }
            Self(Box::from_raw(entries.cast()))
        }
    }
}

fn place(privilege: Privilege, linear: u64, tag: u64) -> usize {
    let mixed = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    ((linear / PAGE_BYTES) ^ mixed ^ (privilege as u64) << 10) as usize % ENTRIES
}

impl SecondLevel {
    /// Keeps a translation of `linear` made for the address space `tag`.
    pub fn insert(&mut self, privilege: Privilege, linear: u64, tag: u64, found: &Translation) {
        let key = if found.global { EVERY_SPACE } else { tag };
        self.0[place(privilege, linear, key)] = Entry {
            page_and_tag: linear & PAGE_MASK | tag,
            physical: found.gpa & PAGE_MASK,
            privilege: privilege as u8,
            page_shift: found.page_shift as u8,
            writable: found.writable,
            global: found.global,
        };
    }

    /// The translation of `linear` in the address space `tag`, or as a global page with a tag from `globals_from` on.
    pub fn find(&self, privilege: Privilege, linear: u64, tag: u64, globals_from: u64) -> Option<Translation> {
        let own = &self.0[place(privilege, linear, tag)];
        let global = &self.0[place(privilege, linear, EVERY_SPACE)];
        let entry = if own.is(privilege, linear) && own.tag() == tag {
            own
        } else if global.is(privilege, linear) && global.global && global.tag() >= globals_from {
            global
        } else {
            return None;
        };
        Some(Translation {
            gpa: entry.physical | linear & !PAGE_MASK,
            writable: entry.writable,
            page_shift: u32::from(entry.page_shift),
            global: entry.global,
        })
    }

    /// Forgets the small page of `linear` in the address space `tag` and as a global one.
    pub fn flush_small(&mut self, linear: u64, tag: u64) {
        for key in [tag, EVERY_SPACE] {
            for privilege in Privilege::ALL {
                let entry = &mut self.0[place(privilege, linear, key)];
                if entry.page() == linear & PAGE_MASK {
                    *entry = Entry::default();
                }
            }
        }
    }

    /// Forgets the page of `linear`, however large it was, in every address space.
    pub fn flush_any(&mut self, linear: u64) {
        self.0.iter_mut().filter(|entry| entry.covers(linear)).for_each(|entry| *entry = Entry::default());
    }

    pub fn clear(&mut self) {
        self.0.fill(Entry::default());
    }
}

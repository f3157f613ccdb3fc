//! The translation look-aside buffer: linear pages as host addresses.
//!
//! Its tables are in the [`Context`](crate::jit::context::Context), where translated code looks
//! them up; here is everything else. What was filled in is written down, so that a flush costs in
//! proportion to what there is to forget.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

use ostler_memory::PAGE_BYTES;

use crate::host::zeros::give_back;
use crate::jit::context::{ContextBox, TLB_BANKS, TLB_ENTRIES};
use crate::mmu::Privilege;
use crate::mmu::guesses;
use crate::mmu::physical::PAGE_MASK;
use crate::mmu::spared::Spared;

/// One translation of the page of a linear address.
#[derive(Clone, Copy, Debug)]
pub struct TlbEntry {
    /// Reads, and writes, need no slow path.
    pub read: bool,
    pub write: bool,
    /// Host address minus linear address.
    pub addend: u64,
    /// The guest physical page; bit 0 set when it is part of a larger page, bit 1 when of a 1 GiB one, bit 2 when the
    /// guest may write there although `write` is not set.
    pub physical: u64,
    /// Good in every address space.
    pub global: bool,
}

/// `physical` of an entry cut from a 2 or 4 MiB page.
pub const LARGE: u64 = 1;
/// `physical` of an entry cut from a 1 GiB page.
pub const HUGE: u64 = 2;

/// `physical` of an entry through which the guest may write, but has somebody told of it.
pub const TOLD: u64 = 4;

/// Entries noted before everything is forgotten.
const NOTED: usize = 8192;

/// Entries filled in that make it worth giving the tables back: each may have touched a page of its own.
const WORN: u32 = 256;

/// The guest physical page of each entry.
type Physical = [[u64; TLB_ENTRIES]; TLB_BANKS];

/// Zeros, which take no memory until they are written.
fn no_physical() -> Box<Physical> {
    let layout = Layout::new::<Physical>();
    // SAFETY: the layout is of some bytes, and zeros are numbers.
    unsafe {
        let memory = alloc_zeroed(layout);
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        Box::from_raw(memory.cast())
    }
}

/// A bank of translations per [`Privilege`].
#[derive(Debug)]
pub struct Tlb {
    pub context: ContextBox,
    physical: Box<Physical>,
    /// The banks and indices that may be valid: of pages good in every address space, and of all others.
    globals: Vec<(u8, u16)>,
    locals: Vec<(u8, u16)>,
    /// Which 4 MiB (hashed to a bit) larger pages were cut into entries in.
    large: u64,
    /// Entries filled in since [`Tlb::give_back`].
    wear: u32,
    spared: Spared,
}

impl Default for Tlb {
    fn default() -> Self {
        let mut tlb = Self {
            context: ContextBox::default(),
            physical: no_physical(),
            globals: Vec::with_capacity(NOTED),
            locals: Vec::with_capacity(NOTED),
            large: 0,
            wear: 0,
            spared: Spared::default(),
        };
        Spared::prepare(&mut tlb.context);
        guesses::prepare(&mut tlb.context);
        for bank in 0..TLB_BANKS {
            // Elsewhere, zero is invalid.
            tlb.clear_ends(bank);
        }
        tlb
    }
}

fn index(linear: u64) -> usize {
    (linear / PAGE_BYTES) as usize % TLB_ENTRIES
}

/// The negated address of a page that is never looked up at `index`: page 0, but where that is looked up, and before
/// it, as an access that crosses into it must not find it.
fn invalid(index: usize) -> u64 {
    if index == 0 || index == TLB_ENTRIES - 1 { PAGE_BYTES * TLB_ENTRIES as u64 / 2 } else { 0 }
}

fn large_bit(linear: u64, physical: u64) -> u64 {
    if physical & HUGE != 0 { u64::MAX } else { 1 << (linear >> 22 & 63) }
}

impl Tlb {
    /// The host address of `bytes` bytes at `linear` that may be read without further ado.
    #[inline(always)]
    pub fn readable(&self, privilege: Privilege, linear: u64, bytes: usize) -> Option<*mut u8> {
        let (bank, index) = (&self.context.tlb[privilege as usize], index(linear));
        (linear.wrapping_add(bank.read[index]) <= PAGE_BYTES - bytes as u64)
            .then(|| linear.wrapping_add(bank.addend[index]) as *mut u8)
    }

    /// As [`Tlb::readable`], for reads and writes.
    #[inline(always)]
    pub fn writable(&self, privilege: Privilege, linear: u64, bytes: usize) -> Option<*mut u8> {
        let (bank, index) = (&self.context.tlb[privilege as usize], index(linear));
        (linear.wrapping_add(bank.write[index]) <= PAGE_BYTES - bytes as u64)
            .then(|| linear.wrapping_add(bank.addend[index]) as *mut u8)
    }

    /// The physical address of `linear`, if it is known for the access.
    pub fn physical(&self, privilege: Privilege, linear: u64, write: bool) -> Option<u64> {
        let physical = self.physical[privilege as usize][index(linear)];
        let known = if write && physical & TOLD == 0 {
            self.writable(privilege, linear, 1)
        } else {
            self.readable(privilege, linear, 1)
        };
        known.map(|_| physical & PAGE_MASK | linear & !PAGE_MASK)
    }

    pub fn insert(&mut self, privilege: Privilege, linear: u64, entry: TlbEntry) {
        let (number, index) = (privilege as usize, index(linear));
        if self.globals.len() == NOTED || self.locals.len() == NOTED {
            self.flush();
        }
        self.spared.clear(&mut self.context);
        if self.page_at(number, index).is_some() {
            // A guess is of a page that an entry is for, maybe of this one.
            guesses::forget_of(&mut self.context, privilege);
        }
        let filled = if entry.global { &mut self.globals } else { &mut self.locals };
        filled.push((number as u8, index as u16));
        self.wear = self.wear.saturating_add(1);
        let page = (linear & PAGE_MASK).wrapping_neg();
        let bank = &mut self.context.tlb[number];
        bank.read[index] = if entry.read { page } else { invalid(index) };
        bank.write[index] = if entry.write { page } else { invalid(index) };
        bank.addend[index] = entry.addend;
        self.physical[number][index] = entry.physical;
        if entry.physical & (LARGE | HUGE) != 0 {
            self.large |= large_bit(linear, entry.physical);
        }
    }

    /// Makes the entries invalid for which zero is not.
    fn clear_ends(&mut self, bank: usize) {
        [0, TLB_ENTRIES - 1].into_iter().for_each(|index| self.clear(bank, index));
    }

    fn clear(&mut self, bank: usize, index: usize) {
        let bank = &mut self.context.tlb[bank];
        (bank.read[index], bank.write[index]) = (invalid(index), invalid(index));
    }

    /// Lets translated code store to the page of `linear`, but for `lines`, until a translation changes.
    pub fn spare(&mut self, privilege: Privilege, linear: u64, lines: u64) {
        self.spared.insert(&mut self.context, privilege, linear, lines);
    }

    /// Whether the page of a store that had to be noted is worth [`Tlb::spare`].
    pub fn spares_next(&mut self) -> bool {
        self.spared.is_due()
    }

    /// The bank and index number `number` of those that may be valid.
    fn filled(&self, number: usize) -> Option<(usize, usize)> {
        let place = self.globals.get(number).or_else(|| self.locals.get(number - self.globals.len()));
        place.map(|(bank, index)| (usize::from(*bank), usize::from(*index)))
    }

    /// Calls `change` for each place that may be valid.
    fn for_each_filled(&mut self, mut change: impl FnMut(&mut Self, usize, usize)) {
        let mut number = 0;
        while let Some((bank, index)) = self.filled(number) {
            change(self, bank, index);
            number += 1;
        }
    }

    /// Forgets what translated code knows of pages beside the tables.
    fn forget_beside(&mut self) {
        self.spared.clear(&mut self.context);
        guesses::forget(&mut self.context);
    }

    /// Forgets everything.
    pub fn flush(&mut self) {
        self.flush_space();
        let mut globals = std::mem::take(&mut self.globals);
        globals.drain(..).for_each(|(bank, index)| self.clear(usize::from(bank), usize::from(index)));
        self.globals = globals;
        self.large = 0;
    }

    /// Forgets what is good in the current address space only.
    pub fn flush_space(&mut self) {
        self.forget_beside();
        let mut locals = std::mem::take(&mut self.locals);
        locals.drain(..).for_each(|(bank, index)| self.clear(usize::from(bank), usize::from(index)));
        self.locals = locals;
    }

    /// Whether [`Tlb::give_back`] would give much.
    pub fn is_worn(&self) -> bool {
        self.wear >= WORN
    }

    /// Forgets everything, and gives the memory of the tables back to the host.
    pub fn give_back(&mut self) {
        self.flush();
        self.wear = 0;
        for (bank, physical) in self.context.tlb.iter_mut().zip(self.physical.iter_mut()) {
            [&mut bank.read, &mut bank.write, &mut bank.addend, physical]
                .into_iter()
                .for_each(|table| give_back(table));
        }
        (0..TLB_BANKS).for_each(|bank| self.clear_ends(bank));
    }

    /// The linear page an entry is for; `None` when it is invalid.
    fn page_at(&self, bank: usize, index: usize) -> Option<u64> {
        let tables = &self.context.tlb[bank];
        let known = if tables.read[index] == invalid(index) { tables.write[index] } else { tables.read[index] };
        (known != invalid(index)).then(|| known.wrapping_neg())
    }

    /// Forgets the page of `linear`, however large it was.
    pub fn flush_page(&mut self, linear: u64) {
        self.forget_beside();
        let at = index(linear);
        for bank in 0..TLB_BANKS {
            if self.page_at(bank, at) == Some(linear & PAGE_MASK) {
                self.clear(bank, at);
            }
        }
        if self.large & large_bit(linear, 0) != 0 {
            self.flush_large(linear);
        }
    }

    /// Forgets what was cut from the larger page around `linear`.
    fn flush_large(&mut self, linear: u64) {
        self.for_each_filled(|tlb, bank, index| {
            let mask = match tlb.physical[bank][index] & (LARGE | HUGE) {
                0 => return,
                // A 4 MiB page is covered by flushing both 2 MiB halves' worth of it.
                LARGE => !0x3f_ffff,
                _ => !0x3fff_ffff,
            };
            if tlb.page_at(bank, index).is_some_and(|page| page & mask == linear & mask) {
                tlb.clear(bank, index);
            }
        });
    }

    /// Forgets what leads to the physical page `gpa`.
    pub fn forget_physical(&mut self, gpa: u64) {
        self.forget_beside();
        self.for_each_filled(|tlb, bank, index| {
            if tlb.physical[bank][index] & PAGE_MASK == gpa & PAGE_MASK {
                tlb.clear(bank, index);
            }
        });
    }

    /// Sends stores to the physical page `gpa` to the slow path from now on.
    pub fn forbid_writes(&mut self, gpa: u64) {
        self.spared.clear(&mut self.context);
        self.for_each_filled(|tlb, bank, index| {
            if tlb.physical[bank][index] & PAGE_MASK == gpa & PAGE_MASK {
                tlb.context.tlb[bank].write[index] = invalid(index);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jit::context::GUESSES;

    #[test]
    fn page_whose_writers_are_told_of_is_known_to_be_writable_but_not_stored_to() {
        let mut tlb = Tlb::default();
        let user = Privilege::User;
        let entry = TlbEntry { read: true, write: false, addend: 0, physical: 0x5000 | TOLD, global: false };
        tlb.insert(user, 0x7000, entry);
        assert_eq!(tlb.physical(user, 0x7123, true), Some(0x5123));
        assert!(tlb.writable(user, 0x7123, 1).is_none() && tlb.physical(user, 0x8123, true).is_none());
        tlb.insert(user, 0x7000, TlbEntry { physical: 0x5000, ..entry });
        assert!(tlb.physical(user, 0x7123, true).is_none(), "the guest's tables have to be asked");
    }

    #[test]
    fn spared_lines_are_taken_back_by_whatever_changes_a_translation() {
        let spares = |tlb: &Tlb| tlb.context.spared[Privilege::User as usize].page.contains(&0x7000);
        let entry = TlbEntry { read: true, write: false, addend: 0, physical: 0x5000 | TOLD, global: false };
        let changes: [fn(&mut Tlb); 5] = [
            Tlb::flush,
            |tlb| tlb.flush_page(0x9000),
            |tlb| tlb.forget_physical(0x5000),
            |tlb| tlb.forbid_writes(0x5000),
            |tlb| {
                tlb.insert(
                    Privilege::User,
                    0x7000,
                    TlbEntry { read: true, write: true, addend: 0, physical: 0x6000, global: false },
                )
            },
        ];
        for change in changes {
            let mut tlb = Tlb::default();
            assert!(!spares(&tlb));
            tlb.insert(Privilege::User, 0x7000, entry);
            tlb.spare(Privilege::User, 0x7123, 1);
            assert!(spares(&tlb));
            change(&mut tlb);
            assert!(!spares(&tlb));
        }
    }

    #[test]
    fn guesses_are_taken_back_by_whatever_takes_a_right_to_read() {
        let known = TlbEntry { read: true, write: false, addend: 0, physical: 0x5000, global: true };
        let changes: [fn(&mut Tlb, TlbEntry); 4] = [
            |tlb, _| tlb.flush_space(),
            |tlb, _| tlb.flush_page(0x9000),
            |tlb, _| tlb.forget_physical(0x5000),
            |tlb, known| tlb.insert(Privilege::User, 0x7000, known),
        ];
        for change in changes {
            let mut tlb = Tlb::default();
            tlb.insert(Privilege::User, 0x7000, known);
            let none = |tlb: &Tlb| tlb.context.guesses[Privilege::User as usize].shift == [63; GUESSES];
            assert!(none(&tlb));
            // As translated code does.
            tlb.context.guesses[Privilege::User as usize].shift[5] = 9;
            tlb.context.guessed = 1;
            assert!(!none(&tlb));
            change(&mut tlb, known);
            assert!(none(&tlb));
        }
    }

    fn finds(tlb: &Tlb, linear: u64, bytes: usize) -> bool {
        tlb.readable(Privilege::User, linear, bytes).is_some() || tlb.writable(Privilege::User, linear, bytes).is_some()
    }

    #[test]
    fn global_page_outlives_its_address_space_and_no_flush_of_everything() {
        let mut tlb = Tlb::default();
        let entry = TlbEntry { read: true, write: true, addend: 0, physical: 0x5000, global: true };
        let fill = |tlb: &mut Tlb| {
            tlb.insert(Privilege::User, 0x7000, entry);
            tlb.insert(Privilege::User, 0x8000, TlbEntry { global: false, ..entry });
            tlb.flush_space();
        };
        fill(&mut tlb);
        assert!(finds(&tlb, 0x7000, 8) && !finds(&tlb, 0x8000, 8));
        tlb.forbid_writes(0x5000);
        assert!(
            tlb.readable(Privilege::User, 0x7000, 8).is_some() && tlb.writable(Privilege::User, 0x7000, 8).is_none()
        );
        let changes: [fn(&mut Tlb); 3] = [Tlb::flush, |tlb| tlb.flush_page(0x7000), |tlb| tlb.forget_physical(0x5000)];
        for change in changes {
            fill(&mut tlb);
            change(&mut tlb);
            assert!(!finds(&tlb, 0x7000, 8));
        }
    }

    #[test]
    fn invalid_entry_is_no_hit_for_aligned_operands_either() {
        // What translated code computes for operands of 16 bytes.
        let hits = |entry: u64, linear: u64| entry.wrapping_add(linear).rotate_right(4) >> 8 == 0;
        for at in 0..TLB_ENTRIES {
            for high in [0, 1 << 28, u64::MAX << 28] {
                let page = high | (at as u64) << 12;
                assert!(!hits(invalid(at), page) && !hits(invalid(at), page + 0xfe0));
                assert!(hits(page.wrapping_neg(), page + 0xff0) && !hits(page.wrapping_neg(), page + 8));
                assert!(!hits(page.wrapping_neg(), page + 0x1000) && !hits(page.wrapping_neg(), page.wrapping_sub(16)));
            }
        }
    }

    #[test]
    fn page_is_found_until_a_flush_and_no_other_ever() {
        let mut tlb = Tlb::default();
        let at_the_end = 0_u64.wrapping_sub(PAGE_BYTES);
        let pages = [0, PAGE_BYTES, PAGE_BYTES << 16, at_the_end, at_the_end - (PAGE_BYTES << 16)];
        for page in pages {
            assert!(!pages.iter().any(|other| finds(&tlb, *other, 1) || finds(&tlb, other + 0xfff, 2)));
            tlb.insert(
                Privilege::User,
                page,
                TlbEntry { read: true, write: true, addend: 0, physical: 0, global: false },
            );
            assert!(finds(&tlb, page + 0xff8, 8) && !finds(&tlb, page + 0xff9, 8));
            assert_eq!(pages.iter().filter(|other| finds(&tlb, **other, 1)).count(), 1);
            tlb.flush();
        }
        for page in pages {
            tlb.insert(
                Privilege::User,
                page,
                TlbEntry { read: true, write: true, addend: 0, physical: 0, global: false },
            );
        }
        tlb.give_back();
        assert!(!pages.iter().any(|page| finds(&tlb, *page, 1) || finds(&tlb, page + 0xfff, 2)) && !tlb.is_worn());
    }
}

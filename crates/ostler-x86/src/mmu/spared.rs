//! Stores to lines without code of pages that hold some: what translated code may store to without a call to Rust.
//!
//! A page with watched lines is not writable in the TLB. Where stores to it keep coming, the few places here say
//! which of its lines have to be noted, and translated code that missed in the TLB asks them in line.

use crate::jit::context::{Context, SPARED};
use crate::mmu::Privilege;
use crate::mmu::physical::PAGE_MASK;

/// No page has this address.
const NONE: u64 = 1;
/// Stores that had to be noted, from one to the next whose page is spared: a page with a few of them is not.
const EVERY: u32 = 8;

/// Which places of [`Context::spared`] are in use.
#[derive(Debug, Default)]
pub struct Spared {
    used: Vec<(u8, u8)>,
    noted: u32,
}

impl Spared {
    /// Fills the places for the first time.
    pub fn prepare(context: &mut Context) {
        context.spared.iter_mut().for_each(|bank| bank.page = [NONE; SPARED]);
    }

    /// Counts a store that had to be noted; true when its page is worth a place.
    pub fn is_due(&mut self) -> bool {
        self.noted = (self.noted + 1) % EVERY;
        self.noted == 0
    }

    /// Lets translated code store to the page of `linear`, but for `lines`.
    pub fn insert(&mut self, context: &mut Context, privilege: Privilege, linear: u64, lines: u64) {
        let (number, index) = (privilege as usize, (linear >> 12) as usize % SPARED);
        let Some(bank) = context.spared.get_mut(number) else { return };
        if bank.page[index] == NONE {
            self.used.push((number as u8, index as u8));
        }
        (bank.page[index], bank.lines[index]) = (linear & PAGE_MASK, lines);
    }

    /// Takes everything back.
    #[inline]
    pub fn clear(&mut self, context: &mut Context) {
        for (bank, index) in self.used.drain(..) {
            context.spared[usize::from(bank)].page[usize::from(index)] = NONE;
        }
    }
}

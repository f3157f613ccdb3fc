//! Which jumps lead where: links between blocks of a page, and the table of jumps.

use std::cell::{Cell, RefCell};

use crate::decode::block::{Block, CodeCache};
use crate::jit::context::{Context, JUMP_ENTRIES, JUMP_SHIFT};
use crate::jit::{BANKS, Jit, Key};

/// What a block knows of its translation.
#[derive(Debug, Default)]
pub struct Translated {
    /// Where its code is; 0 for none.
    entry: Cell<u64>,
    key: Cell<Key>,
    /// Executions by the interpreter.
    runs: Cell<u32>,
    /// The sites linked to it.
    incoming: RefCell<Vec<u32>>,
}

impl Translated {
    /// The code, if it is for `key`.
    #[inline(always)]
    pub fn entry(&self, key: Key) -> Option<u64> {
        (self.entry.get() != 0 && self.key.get() == key).then(|| self.entry.get())
    }

    pub fn set(&self, entry: u64, key: Key) {
        self.entry.set(entry);
        self.key.set(key);
    }

    pub fn is_linked(&self) -> bool {
        !self.incoming.borrow().is_empty()
    }

    /// Counts an execution; true when it is time to translate.
    #[inline(always)]
    pub fn is_due(&self, threshold: u32) -> bool {
        let runs = self.runs.get() + 1;
        self.runs.set(runs);
        if runs < threshold {
            return false;
        }
        // Code that alternates between keys is translated for another at growing intervals.
        self.runs.set(0);
        true
    }
}

fn index(linear: u64) -> usize {
    (linear >> JUMP_SHIFT) as usize % JUMP_ENTRIES
}

/// What `target` holds where nothing is known: an address of another index, negated.
fn nothing(index: usize) -> u64 {
    ((index as u64 ^ 1) << JUMP_SHIFT).wrapping_neg()
}

impl Jit {
    /// Makes jumps to `linear` lead to `entry`.
    pub(super) fn remember_jump(&mut self, context: &mut Context, bank: usize, linear: u64, entry: u64) {
        let (table, index) = (&mut context.jumps[bank], index(linear));
        if table.target[index] == linear.wrapping_neg() && table.entry[index] == entry {
            return;
        }
        table.target[index] = linear.wrapping_neg();
        table.entry[index] = entry;
        table.page[index] = linear & !0xfff;
        self.jumps.push((bank as u8, index as u16));
        if self.jumps.len() > 2 * BANKS * JUMP_ENTRIES {
            // Half at least are entries that replaced others.
            self.jumps.sort_unstable();
            self.jumps.dedup();
        }
    }

    /// Empties the table of jumps.
    pub(super) fn forget_jumps(&mut self, context: &mut Context) {
        for (bank, index) in self.jumps.drain(..) {
            context.jumps[usize::from(bank)].target[usize::from(index)] = nothing(usize::from(index));
        }
    }

    /// Makes the bank of `key` one of code that was translated for `key`: it is looked up by address alone.
    #[inline]
    pub(super) fn adopt_key(&mut self, context: &mut Context, key: Key) {
        let bank = key.bank();
        if self.bank_keys[bank] != key {
            self.bank_keys[bank] = key;
            self.jumps.retain(|(of, index)| {
                let stays = usize::from(*of) != bank;
                if !stays {
                    context.jumps[bank].target[usize::from(*index)] = nothing(usize::from(*index));
                }
                stays
            });
        }
    }

    /// Fills the table of jumps for the first time.
    pub(super) fn clear_jumps(context: &mut Context) {
        for bank in 0..BANKS {
            for (index, target) in context.jumps[bank].target.iter_mut().enumerate() {
                *target = nothing(index);
            }
        }
    }

    /// Links the jump `site` to `block`, if that is where it leads. Both are for `key`.
    pub(super) fn link(&mut self, site: u32, block: &Block, entry: u64, key: Key) {
        let (Some(arena), Some(known)) = (&mut self.arena, self.sites.get(site as usize)) else { return };
        if known.target != block.gpa {
            return;
        }
        if block.second_page.is_some() {
            // What crosses a page depends on where the next page is: this one goes by the table from now on.
            arena.patch(known.way_out, self.stubs.jump[key.bank()]);
            return;
        }
        arena.patch(known.end, entry);
        self.statistics.links += 1;
        block.translated.incoming.borrow_mut().push(site);
    }

    /// Makes every jump to `block` find its way anew.
    pub fn unlink(&mut self, block: &Block) {
        let Some(arena) = &mut self.arena else { return };
        for site in block.translated.incoming.borrow_mut().drain(..) {
            if let Some(site) = self.sites.get(site as usize) {
                arena.patch(site.end, site.unlinked);
            }
        }
    }

    /// Drops all translated code; none of it may be running.
    pub(super) fn drop_all(&mut self, context: &mut Context, code: &CodeCache) {
        self.forget_jumps(context);
        for block in code.blocks() {
            block.translated.set(0, Key::default());
            block.translated.incoming.borrow_mut().clear();
        }
        self.blocks.clear();
        self.sites.clear();
        if let Some(arena) = &mut self.arena {
            arena.truncate(self.stub_bytes);
        }
        self.statistics.flushes += 1;
    }
}
